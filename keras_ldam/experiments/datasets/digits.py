"""Handwritten digits of scikit-learn: 1,797 real images of 8x8 pixels in 10 classes.

Small enough to train in seconds, and available once installed: the default of the programs.
"""

from __future__ import annotations

import numpy as np

from keras_ldam import extras
from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets import imbalance
from keras_ldam.experiments.datasets.data import Data, Split

NETWORK = "small_cnn"
TITLE = "Long-tailed digits"
_TEST_PER_CLASS = 50


def load(config: Config) -> Data:
    """Returns the digits: a balanced test split of 50 a class, the rest made imbalanced.

    The test split is the same for every seed. Images are uint8 `(n, 8, 8, 1)`, 0 to 255.
    """
    with extras.needed("experiments", by="dataset digits"):
        from sklearn.datasets import load_digits

    source = load_digits()
    # Pixels are counts 0 … 16 of dark dots in a 4x4 field.
    images = np.round(source.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = source.target.astype(np.int32)
    num_classes = 10
    test = imbalance.imbalanced_indices(labels, np.full(num_classes, _TEST_PER_CLASS), seed=0)
    pool = np.setdiff1d(np.arange(len(labels)), test)
    everything = Split(images, labels)
    names = [str(digit) for digit in range(num_classes)]
    return imbalance.imbalanced(config, names, everything.take(pool), everything.take(test))
