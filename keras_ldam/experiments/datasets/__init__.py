"""Datasets: one file each, which declares all that is special about it.

A file has a function `load(config)` that returns the `Data`. What else it can declare, with the
values that stand in where it does not, is listed in `Declarations`. A user's own file, named by its
path, also has `recipe(method)`; the recipes of this package are in `configs/`.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_ldam import extras
from keras_ldam.experiments import recipes
from keras_ldam.experiments.config import DATASETS, Config, is_path, unknown_dataset
from keras_ldam.experiments.datasets.data import Data, OnDisk, Ragged, Split
from keras_ldam.experiments.datasets.imbalance import imbalanced

__all__ = [
    "Data",
    "Declarations",
    "OnDisk",
    "Ragged",
    "Split",
    "declared",
    "imbalanced",
    "load",
    "write_samples",
]


def _texts_by_their_vocabulary(config: Config, data: Mapping[str, Any]) -> dict[str, Any]:
    if data["vocabulary"] is None:
        return {}
    from keras_ldam.experiments import text

    return {"tokenizer": text.Tokenizer(data["vocabulary"], config.max_tokens)}


@dataclasses.dataclass(frozen=True)
class Declarations:
    """What a dataset's file declares, under the same names.

    Args:
        load: `load(config) -> Data`. For texts `load(config, *, vocabulary=None)`: the words that a
            trained model knows, in place of those that the training examples give. For tables
            likewise `load(config, *, columns=None)`.
        network: `network(config, data, head) -> keras.Model`, the network that ends in the layer
            `head`. None: one of `models.NETWORKS`.
        NETWORK: Which of `models.NETWORKS`, where the config names none. Empty: one for the form of
            the examples.
        embedding: `embedding(config, data) -> np.ndarray`, the word vectors from which the network
            `bilstm` starts. None: random ones.
        serving: `serving(config, data) -> dict`, arguments of `export_saved_model` that make the
            exported model read raw input, such as `tokenizer` or `decode`. `data` is what the run's
            `data.json` holds.
        DIVIDES_CORES: Whether TensorFlow is to run two chains of operations side by side, see
            `hardware.divide_cores`: faster for LSTMs on CPUs, slower for images.
        TITLE: Title of the dataset's tables. Defaults to the dataset's name.
        MEASURES: Columns of its tables, as pairs of a measure of `results.json` (`"class 1"` for
            the error of class 1) and a title. Empty: the balanced error, and those of classes or
            of groups of classes.
        COLUMNS: Pairs of imbalance and ratio that its tables always show, one column each. Empty:
            those of the runs.
    """

    load: Callable[..., Data]
    network: Callable[[Config, Data, keras.layers.Layer], keras.Model] | None = None
    NETWORK: str = ""
    embedding: Callable[[Config, Data], np.ndarray] | None = None
    serving: Callable[[Config, Mapping[str, Any]], dict[str, Any]] = _texts_by_their_vocabulary
    DIVIDES_CORES: bool = False
    TITLE: str = ""
    MEASURES: tuple[tuple[str, str], ...] = ()
    COLUMNS: tuple[tuple[str, float], ...] = ()


def declared(dataset: str) -> Declarations:
    """Returns what a dataset's file declares; loads neither TensorFlow nor the data.

    Args:
        dataset: One of `DATASETS`, or the path of a user's own file, which is run.

    Raises:
        ValueError: if the dataset is unknown, or the file has no `load` or raises anything.
    """
    if is_path(dataset):
        if Path(dataset).stem in DATASETS:
            raise ValueError(f"{dataset} has the name of a dataset of this package: rename it.")
        module = recipes.load_module(Path(dataset))
        if not callable(getattr(module, "load", None)):
            raise ValueError(f"{dataset} has no function `load(config)`, which returns the Data.")
    elif dataset in DATASETS:
        module = importlib.import_module(f"keras_ldam.experiments.datasets.{dataset}")
    else:
        raise ValueError(unknown_dataset(dataset))
    found = {"TITLE": Path(dataset.removesuffix(".py")).name, **vars(module)}
    names = [field.name for field in dataclasses.fields(Declarations)]
    return Declarations(**{name: found[name] for name in names if name in found})


def load(
    config: Config,
    *,
    vocabulary: Sequence[str] | None = None,
    columns: Sequence[Mapping[str, Any]] | None = None,
) -> Data:
    """Returns the data of a config, imbalanced as it says.

    Args:
        config: See `Config`.
        vocabulary: For texts: the words that a trained model knows, in place of those that the
            training examples of this config give. Defaults to the latter.
        columns: For tables: likewise what each column is, with the known categories.

    Raises:
        ValueError: if the dataset is unknown, it is unavailable (naming where it was looked for),
            or it does not allow the imbalance.
    """
    given = {} if vocabulary is None else {"vocabulary": vocabulary}
    if columns is not None:
        given["columns"] = columns
    load = declared(config.dataset).load
    if not is_path(config.dataset):
        return load(config, **given)
    path = Path(config.dataset)
    with recipes.naming_errors(path):
        data = load(config, **given)
    if not isinstance(data, Data):
        raise ValueError(f"{path}: `load` must return a Data. Received: {type(data).__name__}")
    return dataclasses.replace(data, name=config.dataset_name)


def write_samples(config: Config, folder: str | Path, number: int) -> list[str]:
    """Writes some test images as PNG files, to try a model on.

    Args:
        config: Names the dataset, one of images in memory; its seed chooses the images.
        folder: Where to; created if it does not exist.
        number: How many; their classes take turns.

    Returns:
        The files' names; each ends in the name of the image's class.

    Raises:
        ValueError: if the examples of the dataset are not images in memory.
    """
    with extras.needed("experiments", by="writing samples"):
        from PIL import Image

    if config.dataset in ("text", "table", "folder", "imdb", "inaturalist2018"):
        raise ValueError(f"{config.dataset} has no images in memory to write as files.")
    data = load(config)
    images = data.test.examples
    if not isinstance(images, np.ndarray) or images.ndim != 4:
        raise ValueError(f"{config.dataset_name} has no images in memory to write as files.")
    Path(folder).mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(config.seed)
    names = []
    classes = np.unique(data.test.labels)
    for i in range(number):
        label = classes[i % len(classes)]
        index = generator.choice(np.flatnonzero(data.test.labels == label))
        name = re.sub(r"[/\\\0]", "_", data.class_names[label])
        path = Path(folder) / f"{i}-{name}.png"
        Image.fromarray(images[index].squeeze()).save(path)
        names.append(str(path))
    return names
