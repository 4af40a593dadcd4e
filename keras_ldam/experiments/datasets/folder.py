"""A folder of images, one sub-folder for each class: what most people bring.

    DIR/CLASS/IMAGE                          a fifth of each class is held out for validation
    DIR/train/CLASS/IMAGE, DIR/val/CLASS/IMAGE     the two parts as they are; for val/ also
                                                   validation/ or valid/, or else test/

Classes are in the order of their folders' names.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets import images, imbalance
from keras_ldam.experiments.datasets.data import Data, Split

_TRAINING, _VALIDATION = "train", ("val", "valid", "validation", "test")
_HELD_OUT = 0.2
_IGNORED = ("thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r", "__macosx")
"""What operating systems leave in folders; so are names that begin with a dot."""


def load(config: Config) -> Data:
    """Returns the images of `data_dir`; with a profile of imbalance, as many as it leaves.

    Raises:
        ValueError: naming the folder or the file, for a layout other than the ones above, an
            empty class, a class of the training images absent from the validation images or the
            other way round, a file that is not an image, and, unless `skip_corrupt` is set, an
            image that cannot be read.
    """
    if not config.data_dir:
        raise ValueError(
            "dataset folder needs --data_dir: a folder with one sub-folder of images for each "
            "class, or with train/ and val/ that have these."
        )
    root = Path(config.data_dir).absolute()
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; --data_dir names the folder with the images.")
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
    elif not config.validation_fraction:
        test = read(parts[1])
    counts = imbalance.profile(
        config.imbalance, train.labels, len(class_names), config.imbalance_ratio
    )
    kept, held = imbalance.select(train.labels, counts, config)
    if held is not None:
        test = train.take(held)
    train = train.take(kept)
    return Data(
        name="folder",
        class_names=class_names,
        train=train,
        test=test,
        test_name="test" if parts[-1] == "test" and held is None else "validation",
        # Where the data lie is not what they are.
        skipped=tuple(path.removeprefix(f"{root}{os.sep}") for path in skipped),
    )


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
    names = _folders(root)
    # A class may be called "train": what holds files is a class.
    if _TRAINING not in names or not _folders(root / _TRAINING):
        return ("",)
    found = [name for name in _VALIDATION if name in names]
    others = [name for name in names if name not in (_TRAINING, *found)]
    if others:
        raise ValueError(
            f"{root} has {others[0]}/ beside {_TRAINING}/: it must hold either one folder for "
            f"each class, or {_TRAINING}/ and {_VALIDATION[0]}/ with one folder for each class."
        )
    if not found:
        return (_TRAINING,)
    if len(found) > 1:  # With both val/ and test/, the second is kept for the end.
        print(f"evaluates on {found[0]}/; {found[1]}/ is not used", flush=True)
    return (_TRAINING, found[0])


def _classes(folder):
    names = tuple(_folders(folder))
    if len(names) < 2:
        raise ValueError(
            f"{folder} has {len(names)} sub-folders; at least two classes are needed, one folder "
            "of images for each."
        )
    return names


def _index(folder, class_names, config):
    """Names and labels of the images below a folder, and the files that are not images."""
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
                    f"{entry.path} is a folder inside a class; the images of a class must lie in "
                    "its folder itself."
                )
            if not entry.name.lower().endswith(images.EXTENSIONS):
                strange.append(entry.path)
                continue
            names.append(os.fsencode(f"{name}/{entry.name}"))
            labels.append(label)
    if strange and not config.skip_corrupt:
        raise ValueError(
            f"{strange[0]} is not an image by its name (known: {', '.join(images.EXTENSIONS)}); "
            "remove it, or go on without with --skip_corrupt."
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
    """What a folder holds, by name, without what operating systems put there."""
    with os.scandir(folder) as entries:
        kept = [
            entry
            for entry in entries
            if not entry.name.startswith(".") and entry.name.lower() not in _IGNORED
        ]
    return sorted(kept, key=lambda entry: entry.name)
