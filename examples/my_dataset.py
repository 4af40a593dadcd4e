"""A dataset of your own in one file: rare handwritten eights among other digits.

    bin/train --dataset examples/my_dataset.py
    bin/export --run_dir runs/my_dataset-ldam_drw-0 --output exports/eights
    bin/samples --dataset examples/my_dataset.py | bin/predict --model exports/eights

A minute on a CPU. docs/datasets.md says what else such a file can hold.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets import Data, Split, imbalanced

TITLE = "Eights among digits"


def load(config: Config) -> Data:
    digits = load_digits()
    images = (digits.images * (255 / 16)).astype(np.uint8)[..., None]  # (n, height, width, 1)
    labels = (digits.target == 8).astype(int)
    x, x_test, y, y_test = train_test_split(images, labels, test_size=0.5, random_state=0)
    return imbalanced(config, ["other", "eight"], Split(x, y), Split(x_test, y_test))


def recipe(method: str) -> Config:
    return Config(
        imbalance="none",  # The data are imbalanced already; "longtail" or "step" makes them so.
        epochs=20,
        batch_size=32,
        optimizer="adam",
        learning_rate=1e-3,
        drop_factor=0.1,
        scale=15.0,  # These three: LDAM as the library has it, not as the paper.
        gradual=True,
        head_bias=True,
    )
