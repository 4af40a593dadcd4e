"""CIFAR-10 and CIFAR-100 from TFDS, long-tailed or step."""

from __future__ import annotations

import numpy as np

from keras_ldam.config import Config
from keras_ldam.datasets import imbalance, prepared
from keras_ldam.datasets.data import Data, Split


def load(config: Config) -> Data:
    """Returns the images as uint8 `[n, 32, 32, 3]`, made imbalanced; the test split is whole.

    Seed 0 keeps the images that the official code keeps: its rule counts in the order of the
    original files, which TFDS' record names carry.
    """
    source = prepared.builder(config.dataset, config.data_dir)
    images, labels = _read(source, "train")
    names = tuple(source.info.features["label"].names)
    counts = imbalance.profile(config.imbalance, labels, len(names), config.imbalance_ratio)
    train, held = imbalance.select(labels, counts, config)
    everything = Split(images, labels)
    return Data(
        name=config.dataset,
        class_names=names,
        train=everything.take(train),
        test=Split(*_read(source, "test")) if held is None else everything.take(held),
        test_name="test" if held is None else "validation",
    )


def _read(source, split):
    """Images and labels of a split, in the order of the original files."""
    import tensorflow_datasets as tfds

    read = source.as_dataset(split=split, shuffle_files=False, batch_size=-1)
    records = tfds.as_numpy(read)
    order = np.argsort(records["id"], kind="stable")
    return records["image"][order], records["label"][order].astype(np.int32)
