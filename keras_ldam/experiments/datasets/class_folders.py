"""A folder with one sub-folder for each class, or with parts that have them.

DIR/CLASS/FILE
DIR/train/CLASS/FILE, DIR/val/CLASS/FILE     val/ may also be called valid/, validation/ or test/
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_ldam.experiments.datasets import imbalance

TRAINING, VALIDATION = "train", ("val", "valid", "validation", "test")
"""Names of the parts, in any capitals; of several for validation the first is evaluated."""

HELD_OUT = 0.2
"""Share of each class that is held out where there is no part for validation."""

_IGNORED = ("thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r", "__macosx", "@eadir")
"""What systems leave in folders, in lower case; names that begin with a dot are ignored too."""


def parts(root: Path) -> tuple[str, ...]:
    """Returns `("",)` for class folders right below the root, or the names of the two parts."""
    names = {name.lower(): name for name in folders(root)}
    training = names.get(TRAINING)
    # A class may be called "train": a folder of files is a class.
    if training is None or not folders(root / training):
        return ("",)
    found = [names[name] for name in VALIDATION if name in names]
    others = [name for name in folders(root) if name not in (training, *found)]
    if others:
        raise ValueError(
            f"{root} has {others[0]}/ beside {training}/: it must hold either one folder for each "
            f"class, or {TRAINING}/ and {VALIDATION[0]}/ with one folder for each class."
        )
    if len(found) > 1:  # With both val/ and test/, the second is kept for the end.
        print(f"evaluates on {found[0]}/; {found[1]}/ is not used", flush=True)
    return (training, *found[:1])


def classes(folder: Path, what: str) -> tuple[str, ...]:
    """Returns the names of the class folders, in their order.

    Args:
        folder: The folder of a part.
        what: What the files are, for messages: `"image"` or `"text"`.
    """
    names = tuple(folders(folder))
    if len(names) < 2:
        raise ValueError(
            f"{folder} has {len(names)} sub-folders; it must have at least two, one folder of "
            f"{what}s for each class."
        )
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"{folder} has a class folder whose name is not UTF-8, {os.fsencode(name)!r}: "
                "rename it."
            ) from None
    return names


def files(
    folder: Path, class_names: Sequence[str], extensions: tuple[str, ...], what: str
) -> tuple[list[str], np.ndarray, list[str]]:
    """Returns the files below the class folders of a part.

    Args:
        folder: The folder of the part.
        class_names: The classes of the training examples.
        extensions: Endings of the files, in lower case.
        what: See `classes`.

    Returns:
        Names, as `CLASS/FILE`; labels, int32; and the paths of the files with another ending.
    """
    present = folders(folder)
    unknown = sorted(set(present) - set(class_names))
    if unknown:
        raise ValueError(f"{folder / unknown[0]} is a class that has no training {what}s.")
    names, labels, strange = [], [], []
    for label, name in enumerate(class_names):
        if name not in present:
            raise ValueError(f"class {name} of the training {what}s is absent from {folder}.")
        for entry in _entries(folder / name):
            if entry.is_dir():
                raise ValueError(
                    f"{entry.path} is a folder inside a class; the {what}s of a class must lie "
                    "directly in its folder."
                )
            if not entry.is_file() and Path(entry.path).exists():
                # Reading a pipe waits for ever.
                raise ValueError(f"{entry.path} is neither a file nor a folder; remove it.")
            if not entry.name.lower().endswith(extensions):
                strange.append(entry.path)
                continue
            names.append(f"{name}/{entry.name}")
            labels.append(label)
    labels = np.array(labels, dtype=np.int32)
    return names, labels, strange


def check_none_empty(
    labels: np.ndarray, class_names: Sequence[str], folder: Path, what: str
) -> None:
    """Raises `ValueError` for a class without an example, naming its folder."""
    empty = np.flatnonzero(np.bincount(labels, minlength=len(class_names)) == 0)
    if empty.size:
        others = f" ({empty.size} classes without any)" if empty.size > 1 else ""
        raise ValueError(f"{folder / class_names[empty[0]]} holds no {what}{others}.")


def hold_out(
    labels: np.ndarray, class_names: Sequence[str], root: Path, what: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices that stay and those that are held out, the same for every seed."""
    alone = np.flatnonzero(np.bincount(labels, minlength=len(class_names)) == 1)
    if alone.size:
        raise ValueError(
            f"class {class_names[alone[0]]} has a single {what}, so none can be held out for "
            f"validation: add {what}s, remove the class, or divide the {what}s yourself into "
            f"{root / TRAINING} and {root / VALIDATION[0]}."
        )
    return imbalance.hold_out(labels, HELD_OUT, seed=0)


def folders(folder: Path) -> list[str]:
    """Returns the names of the folders in a folder."""
    return [entry.name for entry in _entries(folder) if entry.is_dir()]


def _entries(folder):
    """The entries of a folder, by name, without what systems leave there."""
    with os.scandir(folder) as entries:
        kept = [
            entry
            for entry in entries
            if not entry.name.startswith(".") and entry.name.lower() not in _IGNORED
        ]
    return sorted(kept, key=lambda entry: entry.name)
