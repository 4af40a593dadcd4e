"""A folder of your own images, one sub-folder for each class.

    DIR/CLASS/IMAGE                          a fifth of each class is held out for validation
    DIR/train/CLASS/IMAGE, DIR/val/CLASS/IMAGE     the two parts as they are; val/ may also be
                                                   called valid/, validation/ or test/

The names of the parts may be in capitals. Classes are in the order of their folders' names.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets import imbalance
from keras_ldam.experiments.datasets.data import Data, Split

NETWORK = "resnet50"
_TRAINING, _VALIDATION = "train", ("val", "valid", "validation", "test")
_HELD_OUT = 0.2
_IGNORED = ("thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r", "__macosx", "@eadir")
"""What systems leave in folders, in lower case; names that begin with a dot are ignored too."""


def load(config: Config) -> Data:
    """Returns the images of `data_dir`; with a profile of imbalance, as many as it leaves.

    Raises:
        ValueError: naming the folder or the file, if the layout is none of the above, a class is
            empty or is in one part only, its name is not UTF-8, a file is not an image, or, unless
            `skip_corrupt` is set, an image cannot be read.
    """
    from keras_ldam.experiments.datasets import images

    if not config.data_dir:
        raise ValueError(
            "dataset folder needs --data_dir, a folder with one sub-folder of images for each "
            "class, or with train/ and val/ that hold such sub-folders."
        )
    root = Path(config.data_dir).absolute()
    if not root.is_dir():
        raise ValueError(
            f"{root} is not an existing folder; pass that of the images as --data_dir."
        )
    parts = _parts(root)
    class_names = _classes(root / parts[0])
    skipped = []

    def read(part):
        folder = root / part
        split, unknown = _index(folder, class_names, config)
        split, bad = images.check(split, skip_corrupt=config.skip_corrupt, what=part)
        skipped.extend(unknown + bad)
        _check_none_empty(split.labels, class_names, folder, "readable image")
        return split

    train = read(parts[0])
    if len(parts) == 1:
        print(f"no {_VALIDATION[0]}/: a fifth of each class is held out for validation", flush=True)
        # The same images for every seed, so that runs can be compared.
        stay, held = _hold_out(train.labels, class_names, root)
        train, test = train.take(stay), train.take(held)
    else:
        test = train if config.validation_fraction else read(parts[1])
    return imbalance.imbalanced(
        config,
        class_names,
        train,
        test,
        test_name="test" if parts[-1].lower() == "test" else "validation",
        # Relative to the folder, which may move.
        skipped=[path.removeprefix(f"{root}{os.sep}") for path in skipped],
    )


def serving(config: Config, data: Mapping[str, Any]) -> dict[str, Any]:
    """A served image is scaled and cropped as those that the results are about."""
    from keras_ldam.experiments.datasets import images

    return {"decode": functools.partial(images.center_image, image_size=config.image_size)}


def _hold_out(labels, class_names, root):
    alone = np.flatnonzero(np.bincount(labels, minlength=len(class_names)) == 1)
    if alone.size:
        raise ValueError(
            f"class {class_names[alone[0]]} has a single image, so none can be held out for "
            f"validation: add images, remove the class, or divide the images yourself into "
            f"{root / _TRAINING} and {root / _VALIDATION[0]}."
        )
    return imbalance.hold_out(labels, _HELD_OUT, seed=0)


def _parts(root):
    """`("",)` for class folders right below the root, or the names of the two parts."""
    names = {name.lower(): name for name in _folders(root)}
    training = names.get(_TRAINING)
    # A class may be called "train": a folder of files is a class.
    if training is None or not _folders(root / training):
        return ("",)
    found = [names[name] for name in _VALIDATION if name in names]
    others = [name for name in _folders(root) if name not in (training, *found)]
    if others:
        raise ValueError(
            f"{root} has {others[0]}/ beside {training}/: it must hold either one folder for each "
            f"class, or {_TRAINING}/ and {_VALIDATION[0]}/ with one folder for each class."
        )
    if len(found) > 1:  # With both val/ and test/, the second is kept for the end.
        print(f"evaluates on {found[0]}/; {found[1]}/ is not used", flush=True)
    return (training, *found[:1])


def _classes(folder):
    names = tuple(_folders(folder))
    if len(names) < 2:
        raise ValueError(
            f"{folder} has {len(names)} sub-folders; it must have at least two, one folder of "
            "images for each class."
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


def _index(folder, class_names, config):
    """Names and labels of the images below a folder, and the files that are not images."""
    from keras_ldam.experiments.datasets import images

    present = _folders(folder)
    unknown = sorted(set(present) - set(class_names))
    if unknown:
        raise ValueError(f"{folder / unknown[0]} is a class that has no training images.")
    names, labels, strange = [], [], []
    for label, name in enumerate(class_names):
        if name not in present:
            raise ValueError(f"class {name} of the training images is absent from {folder}.")
        for entry in _entries(folder / name):
            if entry.is_dir():
                raise ValueError(
                    f"{entry.path} is a folder inside a class; the images of a class must lie "
                    "directly in its folder."
                )
            if not entry.name.lower().endswith(images.EXTENSIONS):
                strange.append(entry.path)
                continue
            names.append(os.fsencode(f"{name}/{entry.name}"))
            labels.append(label)
    if strange and not config.skip_corrupt:
        raise ValueError(
            f"{strange[0]} is not an image by its name (known: {', '.join(images.EXTENSIONS)}); "
            "remove it, or leave it out with --skip_corrupt."
        )
    labels = np.array(labels, dtype=np.int32)
    _check_none_empty(labels, class_names, folder, "image")
    loader = images.Loader(images.Files(folder), config.image_size)
    return Split(np.array(names, dtype=np.bytes_), labels, loader), strange


def _check_none_empty(labels, class_names, folder, what):
    empty = np.flatnonzero(np.bincount(labels, minlength=len(class_names)) == 0)
    if empty.size:
        more = f" (and {empty.size - 1} more classes)" if empty.size > 1 else ""
        raise ValueError(f"{folder / class_names[empty[0]]} holds no {what}{more}.")


def _folders(folder):
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
