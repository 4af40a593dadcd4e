"""What CIFAR-10 and CIFAR-100 share: reading, from TFDS or from the original archive."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np

from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets import imbalance, prepared
from keras_ldam.experiments.datasets.data import Data, Split

NETWORK = "resnet32"
MEASURES = (("mean_error", "mean error"),)
COLUMNS = (("longtail", 100), ("longtail", 10), ("step", 100), ("step", 10))


@dataclasses.dataclass(frozen=True)
class Archive:
    """The original archive for Python.

    Args:
        folder: Its name, once unpacked.
        files: Names of the files of each split, in order.
        labels: Key of the labels in these files.
        meta: Name of the file of class names.
        names: Key of the names in that file.
    """

    folder: str
    files: dict[str, tuple[str, ...]]
    labels: str
    meta: str
    names: str


def read(config: Config, archive: Archive) -> Data:
    """Returns the images as uint8 `(n, 32, 32, 3)`, made imbalanced; the test split is whole.

    Reads the original archive if `data_dir` holds it unpacked, as torchvision and Keras leave it
    too; this needs no TensorFlow. Reads TFDS' dataset otherwise: the same images in the same order.

    Seed 0 keeps the images that the official code keeps: its rule counts in the order of the
    original files, which TFDS' record names carry.
    """
    folder = Path(config.data_dir or ".") / archive.folder
    if config.data_dir and folder.is_dir():
        names = _unpickle(folder / archive.meta)[archive.names]
        splits = [
            _read_archive(folder, archive.files[split], archive.labels)
            for split in ("train", "test")
        ]
    else:
        source = prepared.builder(config.dataset, config.data_dir, archive=archive.folder)
        names = source.info.features["label"].names
        splits = [_read_prepared(source, split) for split in ("train", "test")]
    return imbalance.imbalanced(config, names, *splits)


def _read_prepared(source, split):
    """A split, in the order of the original files."""
    import tensorflow_datasets as tfds

    read = source.as_dataset(split=split, shuffle_files=False, batch_size=-1)
    records = tfds.as_numpy(read)
    order = np.argsort(records["id"], kind="stable")
    return Split(records["image"][order], records["label"][order])


def _read_archive(folder, files, key):
    """The images of some files, in their order."""
    parts = [_unpickle(folder / file) for file in files]
    pixels = np.concatenate([part["data"] for part in parts])
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Split(np.ascontiguousarray(images), np.concatenate([part[key] for part in parts]))


class _ArraysOnly(pickle.Unpickler):
    """Reads arrays and plain values; a pickle could otherwise run any code."""

    def find_class(self, module, name):
        array = module.startswith("numpy") and name in ("_reconstruct", "ndarray", "dtype")
        if array or (module, name) == ("_codecs", "encode"):  # Python 3's form of old strings.
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which no archive of CIFAR does")


def _unpickle(path):
    try:
        with open(path, "rb") as file:
            # As text: the archive is of Python 2, and its keys and names are ASCII.
            return _ArraysOnly(file, encoding="latin1").load()
    except Exception as error:  # A damaged pickle can raise anything.
        raise ValueError(f"{path} cannot be read as a part of CIFAR: {error}.") from None
