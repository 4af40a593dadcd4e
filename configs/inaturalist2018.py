"""iNaturalist 2018 with ResNet-50: the rows of the paper's table 3.

    bin/train --dataset inaturalist2018 --data_dir DIR --method erm
    bin/train --dataset inaturalist2018 --data_dir DIR --method cb_focal
    bin/train --dataset inaturalist2018 --data_dir DIR --method ce_drw
    bin/train --dataset inaturalist2018 --data_dir DIR --method ldam
    bin/train --dataset inaturalist2018 --data_dir DIR --method ldam_drw

DIR holds train2018.json, val2018.json and train_val2018/, as the release unpacks.

    method      top-1 error   top-5 error   in the paper
    erm         42.86         21.31
    cb_focal    38.88         18.97
    ce_drw      36.27         16.55
    ldam        35.42         16.48
    ldam_drw    32.00         14.82

    bin/train --dataset inaturalist2018 --data_dir DIR --method bbn --recipe bbn

The recipe bbn is that of BBN's authors (Zhou et al., 2020, and their code), whose method takes two
images a step in the place of one; they have 33.71 with it, and 30.38 with --epochs 180.

The paper gives 90 epochs, learning rate 0.1, multiplied by 0.1 at 30 and 60, re-weighting from 60,
largest margin 0.3, images scaled to 256, cropped to 224 at random and flipped. It does not give
batch size (256 here, as a later paper reports), weight decay (1e-4, as He et al.) or scale (30, as
in the official code for CIFAR). ResNet-50 is that of keras.applications, with its initial values:
its convolutions have biases, and those of stride 2 are the first of their block. The paper copies
the row of class-balanced focal loss from Cui et al., so it has their gamma and beta.

Hardware: the paper used 4 V100. Not run here. Time, calculated from the rates in
benchmarks/jpeg_pipeline.json, which were measured on 2 shared CPU cores: 47 days on these cores
with --precision mixed_bfloat16; reading the images of all 90 epochs alone takes 27 hours.
"""

from keras_ldam.experiments.config import Config


def recipe(method: str) -> Config:
    cui = {"gamma": 0.5, "beta": 0.999} if method in ("focal", "cb_focal") else {}
    return Config(
        imbalance="none",
        epochs=90,
        batch_size=256,
        learning_rate=0.1,
        drop_at=(1 / 3, 2 / 3),
        drop_factor=0.1,
        weight_decay=1e-4,
        max_margin=0.3,
        start_drop=2,
        **cui,
    )


def bbn(method: str) -> Config:
    return Config(
        imbalance="none",
        epochs=90,
        batch_size=128,
        learning_rate=0.05,
        nesterov=True,
        drop_at=(2 / 3, 8 / 9),
        drop_factor=0.1,
        weight_decay=1e-4,
        max_margin=0.3,
        alpha_length=10 / 9,
    )


RECIPES = {"bbn": bbn}
