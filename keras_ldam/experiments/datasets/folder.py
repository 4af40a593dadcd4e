"""A folder of your own images, one sub-folder for each class.

    DIR/CLASS/IMAGE                          a fifth of each class is held out for validation
    DIR/train/CLASS/IMAGE, DIR/val/CLASS/IMAGE     the two parts as they are; val/ may also be
                                                   called valid/, validation/ or test/

The names of the parts may be in capitals. Classes are in the order of their folders' names.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets import class_folders, imbalance
from keras_ldam.experiments.datasets.data import Data, Split

NETWORK = "resnet50"


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
    parts = class_folders.parts(root)
    class_names = class_folders.classes(root / parts[0], "image")
    skipped = []

    def read(part):
        folder = root / part
        split, unknown = _index(folder, class_names, config)
        split, bad = images.check(split, skip_corrupt=config.skip_corrupt, what=part)
        skipped.extend(unknown + bad)
        class_folders.check_none_empty(split.labels, class_names, folder, "readable image")
        return split

    train = read(parts[0])
    if len(parts) == 1:
        print(
            f"no {class_folders.VALIDATION[0]}/: a fifth of each class is held out for validation",
            flush=True,
        )
        # The same images for every seed, so that runs can be compared.
        stay, held = class_folders.hold_out(train.labels, class_names, root, "image")
        train, test = train.take(stay), train.take(held)
    else:
        test = train if config.validation_fraction else read(parts[1])
    data = imbalance.imbalanced(
        config,
        class_names,
        train,
        test,
        test_name="test" if parts[-1].lower() == "test" else "validation",
        # Relative to the folder, which may move.
        skipped=[path.removeprefix(f"{root}{os.sep}") for path in skipped],
    )
    names = b"\0\0".join(b"\0".join(split.examples.tolist()) for split in (train, test))
    digest = hashlib.blake2b(names, digest_size=16)
    return dataclasses.replace(data, fingerprint=digest.hexdigest())


def serving(config: Config, data: Mapping[str, Any]) -> dict[str, Any]:
    """A served image is scaled and cropped as those that the results are about."""
    from keras_ldam.experiments.datasets import images

    return {"decode": functools.partial(images.center_image, image_size=config.image_size)}


def _index(folder, class_names, config):
    """Names and labels of the images below a folder, and the files that are not images."""
    from keras_ldam.experiments.datasets import images

    names, labels, strange = class_folders.files(folder, class_names, images.EXTENSIONS, "image")
    if strange and not config.skip_corrupt:
        raise ValueError(
            f"{strange[0]} is not an image by its name (known: {', '.join(images.EXTENSIONS)}); "
            "remove it, or leave it out with --skip_corrupt."
        )
    class_folders.check_none_empty(labels, class_names, folder, "image")
    loader = images.Loader(images.Files(folder), config.image_size)
    return Split(
        np.array([os.fsencode(name) for name in names], dtype=np.bytes_), labels, loader
    ), strange
