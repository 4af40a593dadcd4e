"""A folder of your own images with ResNet-50.

    bin/train --dataset folder --data_dir DIR
    bin/train --dataset folder --data_dir DIR --method erm
    bin/train --dataset folder --data_dir DIR --pretrained FILE --learning_rate 0.002 --epochs 20

DIR has one sub-folder of images for each class, or train/ and val/ (or validation/ or test/) with
such sub-folders. Without val/ a fifth of each class is held out, the same for every seed, and
evaluated; `--validation_fraction` takes another part of the training images. The imbalance is that
of the images; `--imbalance longtail` makes balanced folders imbalanced, for experiments.

This recipe is our choice and unpublished: the learning rate of the paper's iNaturalist runs, for
batches of 64, and deferred re-weighting after two thirds of the epochs, when the rate drops. With
few images, start from a pretrained network, FILE, and shorten the run; docs/datasets.md says what
FILE may be.
"""

from keras_ldam.experiments.config import Config


def recipe(method: str) -> Config:
    return Config(
        imbalance="none",
        epochs=90,
        batch_size=64,
        learning_rate=0.025,
        drop_at=(2 / 3, 5 / 6),
        drop_factor=0.1,
        weight_decay=1e-4,
        # LDAM as the library has it by default, not as the paper: docs/margins.md.
        scale=15.0,
        gradual=True,
        head_bias=True,
    )
