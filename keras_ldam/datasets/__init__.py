"""Datasets: one file each, all yielding the same record."""

from __future__ import annotations

import importlib

from keras_ldam.config import DATASETS, Config
from keras_ldam.datasets.data import Data, Ragged, Split

__all__ = ["Data", "Ragged", "Split", "load"]

_MODULES = {"cifar10": "cifar", "cifar100": "cifar"}
"""Where a dataset's file has another name than the dataset."""


def load(config: Config) -> Data:
    """Returns the data that a config names, imbalanced as it says.

    Raises:
        ValueError: for an unknown dataset, or one that is not to be had (saying where it was
            looked for), or an imbalance that it does not allow.
    """
    if config.dataset not in DATASETS:
        raise ValueError(f"unknown dataset {config.dataset!r}; known: {', '.join(DATASETS)}.")
    module = importlib.import_module(
        f"keras_ldam.datasets.{_MODULES.get(config.dataset, config.dataset)}"
    )
    return module.load(config)
