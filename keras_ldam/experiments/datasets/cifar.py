"""CIFAR-10 and CIFAR-100, long-tailed or step, from TFDS or from the original archive."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets import imbalance, prepared
from keras_ldam.experiments.datasets.data import Data, Split

_ARCHIVES = {
    "cifar10": (
        "cifar-10-batches-py",
        {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
        "labels",
        ("batches.meta", "label_names"),
    ),
    "cifar100": (
        "cifar-100-python",
        {"train": ["train"], "test": ["test"]},
        "fine_labels",
        ("meta", "fine_label_names"),
    ),
}
"""Folder of each dataset's Python archive, its files, and what holds labels and names."""


def load(config: Config) -> Data:
    """Returns the images as uint8 `[n, 32, 32, 3]`, made imbalanced; the test split is whole.

    If `data_dir` holds the original archive as unpacked (`cifar-10-batches-py` or
    `cifar-100-python`, where torchvision and Keras leave it too), that is read, and TensorFlow
    is not needed. Else it is TFDS' dataset; the images are the same, in the same order.

    Seed 0 keeps the images that the official code keeps: its rule counts in the order of the
    original files, which TFDS' record names carry.
    """
    archive = Path(config.data_dir or ".") / _ARCHIVES[config.dataset][0]
    if config.data_dir and archive.is_dir():
        names = _archive_names(config.dataset, archive)

        def read(split):
            return _read_archive(config.dataset, archive, split)
    else:
        source = prepared.builder(config.dataset, config.data_dir)
        names = tuple(source.info.features["label"].names)

        def read(split):
            return _read(source, split)

    images, labels = read("train")
    counts = imbalance.profile(config.imbalance, labels, len(names), config.imbalance_ratio)
    train, held = imbalance.select(labels, counts, config)
    everything = Split(images, labels)
    return Data(
        name=config.dataset,
        class_names=names,
        train=everything.take(train),
        test=Split(*read("test")) if held is None else everything.take(held),
        test_name="test" if held is None else "validation",
    )


def _read(source, split):
    """Images and labels of a split, in the order of the original files."""
    import tensorflow_datasets as tfds

    read = source.as_dataset(split=split, shuffle_files=False, batch_size=-1)
    records = tfds.as_numpy(read)
    order = np.argsort(records["id"], kind="stable")
    return records["image"][order], records["label"][order].astype(np.int32)


def _read_archive(name, folder, split):
    """Images and labels of a split, in the order of the files."""
    _, files, key, _ = _ARCHIVES[name]
    parts = [_unpickle(folder / file) for file in files[split]]
    pixels = np.concatenate([part["data"] for part in parts])
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = np.concatenate([part[key] for part in parts])
    return np.ascontiguousarray(images), labels.astype(np.int32)


def _archive_names(name, folder):
    file, key = _ARCHIVES[name][3]
    return tuple(_unpickle(folder / file)[key])


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
