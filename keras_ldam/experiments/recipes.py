"""Recipes: one file a dataset, this package's in `configs/`, a user's with the data."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from keras_ldam.experiments.config import (
    DATASETS,
    METHODS,
    Config,
    is_path,
    unknown_dataset,
)

_HERE = Path(__file__).parent
# An installed package carries configs/ inside; in a checkout it stands beside the package.
_FOLDERS = (_HERE / "configs", _HERE.parents[1] / "configs")


def load_recipe(dataset: str, method: str, name: str = "") -> Config:
    """Returns a recipe of a dataset: a config of its `recipe(method)`, or of another by name.

    Args:
        dataset: One of `DATASETS`, whose recipe is `configs/DATASET.py`, or the path of a user's
            own file.
        method: One of `METHODS`; a recipe may set a method's own constants.
        name: A key of the file's `RECIPES`, whose values are functions like `recipe`. Empty, the
            default, for `recipe` itself.

    Returns:
        The config as the file writes it, of this dataset, method and name, and not resolved yet, so
        that flags can still change it.

    Raises:
        ValueError: if the dataset, the method or the name is unknown, the file has no `recipe`, or
            what that returns is not a `Config`.
    """
    if method not in METHODS:
        raise ValueError(
            f"`method` must be one of {', '.join(METHODS)}. Received: method={method!r}"
        )
    path = Path(dataset)
    if not is_path(dataset):
        if dataset not in DATASETS:
            raise ValueError(unknown_dataset(dataset))
        path = next(file for folder in _FOLDERS if (file := folder / f"{dataset}.py").exists())
    module = load_module(path)
    if not callable(getattr(module, "recipe", None)):
        raise ValueError(f"{path} has no function `recipe(method)`, which returns a Config.")
    others = getattr(module, "RECIPES", {})
    if name and name not in others:
        known = f"one of {', '.join(others)}, or empty" if others else "empty"
        raise ValueError(f"`recipe` must be {known}, for {path.stem}. Received: recipe={name!r}")
    recipe = others[name] if name else module.recipe
    with naming_errors(path):
        config = recipe(method)
    if not isinstance(config, Config):
        raise ValueError(f"{path}: `recipe` must return a Config. Received: {config!r}")
    return dataclasses.replace(config, dataset=dataset, method=method, recipe=name)


def load_module(path: Path) -> ModuleType:
    """Runs a Python file, once as long as it does not change, and returns its module.

    Raises:
        ValueError: if there is no such file, or it raises anything.
    """
    path = path.absolute()
    if not path.is_file():
        raise ValueError(f"{path} is not an existing Python file.")
    return _module(path, path.stat().st_mtime_ns)


@functools.cache
def _module(path, changed):
    name = f"keras_ldam_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    with naming_errors(path):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def naming_errors(path: Path) -> Iterator[None]:
    """Within it, whatever a Python file raises becomes a `ValueError` that names file and line."""
    path = path.absolute()
    try:
        yield
    except Exception as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename) == path
        ]
        if isinstance(error, SyntaxError) and error.filename == str(path):
            lines, error = [error.lineno], SyntaxError(error.msg)
        place = f"{path}, line {lines[-1]}" if lines else str(path)
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{place}: {kind}{error}") from error
