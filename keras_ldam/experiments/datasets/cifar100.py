"""CIFAR-100, long-tailed or step: images of 32x32 pixels in 100 classes."""

from __future__ import annotations

from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets import cifar
from keras_ldam.experiments.datasets.data import Data

TITLE = "Imbalanced CIFAR-100"
NETWORK, MEASURES, COLUMNS = cifar.NETWORK, cifar.MEASURES, cifar.COLUMNS
ARCHIVE = cifar.Archive(
    folder="cifar-100-python",
    files={"train": ("train",), "test": ("test",)},
    labels="fine_labels",
    meta="meta",
    names="fine_label_names",
)


def load(config: Config) -> Data:
    """Returns the images; see `cifar.read`."""
    return cifar.read(config, ARCHIVE)
