"""Datasets: one file each, all yielding the same record."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_ldam.experiments.config import DATASETS, Config
from keras_ldam.experiments.datasets.data import Data, Ragged, Split

__all__ = ["Data", "Ragged", "Split", "load", "write_samples"]

_MODULES = {"cifar10": "cifar", "cifar100": "cifar"}
"""Where a dataset's file has another name than the dataset."""


def load(config: Config, *, vocabulary: Sequence[str] | None = None) -> Data:
    """Returns the data that a config names, imbalanced as it says.

    Args:
        config: See `Config`.
        vocabulary: For text: the words that a trained model knows, in place of those that the
            training examples of this config give; None: the latter.

    Raises:
        ValueError: for an unknown dataset, or one that is not to be had (saying where it was
            looked for), or an imbalance that it does not allow.
    """
    if config.dataset not in DATASETS:
        raise ValueError(f"unknown dataset {config.dataset!r}; known: {', '.join(DATASETS)}.")
    module = importlib.import_module(
        f"keras_ldam.experiments.datasets.{_MODULES.get(config.dataset, config.dataset)}"
    )
    return module.load(config) if vocabulary is None else module.load(config, vocabulary=vocabulary)


def write_samples(config: Config, folder: str | Path, number: int) -> list[str]:
    """Writes some test images as PNG files that a model can be tried on.

    Args:
        config: Names the dataset, one whose images are in memory; its seed chooses the images.
        folder: Where to; made if it is not there.
        number: How many, of classes that follow one another.

    Returns:
        The files' names; each ends in the name of the image's class.

    Raises:
        ValueError: for a dataset whose examples are not images in memory.
    """
    from PIL import Image

    data = load(config)
    images = data.test.examples
    if not isinstance(images, np.ndarray) or images.ndim != 4:
        raise ValueError(f"{config.dataset} has no images in memory to write as files.")
    Path(folder).mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(config.seed)
    names = []
    for i in range(number):
        label = i % len(data.class_names)
        index = generator.choice(np.flatnonzero(data.test.labels == label))
        path = Path(folder) / f"{i}-{data.class_names[label]}.png"
        Image.fromarray(images[index].squeeze()).save(path)
        names.append(str(path))
    return names
