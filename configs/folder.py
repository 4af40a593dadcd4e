"""A folder of your own images with ResNet-50.

    bin/train --dataset folder --data_dir DIR
    bin/train --dataset folder --data_dir DIR --method erm
    bin/train --dataset folder --data_dir DIR --weights FILE.h5 --learning_rate 0.005 --epochs 30

DIR has one sub-folder of images for each class, or train/ and val/ (or validation/ or test/) that
have these. Without val/ a fifth of each class is held out, the same for every seed, and the errors
are on it; `--validation_fraction` takes another part of the training images. The imbalance is that
of the images; `--imbalance longtail` makes one out of balanced folders, for experiments.

A choice of ours, not a published recipe: the learning rate of the paper's iNaturalist runs for
batches of 64, and the deferred re-weighting after two thirds of the epochs, when the rate drops.
With few images start from trained weights, and shorten the run.
"""

from keras_ldam.experiments.config import Config


def config(method: str) -> Config:
    return Config(
        dataset="folder",
        method=method,
        imbalance="none",
        epochs=90,
        batch_size=64,
        learning_rate=0.025,
        drop_at=(2 / 3, 5 / 6),
        drop_factor=0.1,
        weight_decay=1e-4,
    )
