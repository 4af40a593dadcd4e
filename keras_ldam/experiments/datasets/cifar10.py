"""CIFAR-10, long-tailed or step: images of 32x32 pixels in 10 classes."""

from __future__ import annotations

from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets import cifar
from keras_ldam.experiments.datasets.data import Data

TITLE = "Imbalanced CIFAR-10"
NETWORK, MEASURES, COLUMNS = cifar.NETWORK, cifar.MEASURES, cifar.COLUMNS
ARCHIVE = cifar.Archive(
    folder="cifar-10-batches-py",
    files={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    labels="labels",
    meta="batches.meta",
    names="label_names",
)


def load(config: Config) -> Data:
    """Returns the images; see `cifar.read`."""
    return cifar.read(config, ARCHIVE)
