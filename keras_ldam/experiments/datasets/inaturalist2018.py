"""iNaturalist 2018: 437,513 training images of 8,142 species, 2 to 1,000 of each.

It is read from the official release, as it unpacks,

    DIR/train2018.json, DIR/val2018.json
    DIR/train_val2018/SUPERCATEGORY/CATEGORY/IMAGE.jpg

or, without these annotations, from `i_naturalist2018` as TFDS prepares it.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path

import numpy as np

from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets import folder, imbalance, prepared
from keras_ldam.experiments.datasets.data import Data, Split

NETWORK = "resnet50"
TITLE = "iNaturalist 2018"
MEASURES = (("error", "top-1"), ("top5_error", "top-5"))
serving = folder.serving
TRAIN_FILE, VALIDATION_FILE = "train2018.json", "val2018.json"


def load(config: Config) -> Data:
    """Returns the official training and validation images, long-tailed as they are.

    Classes are the categories in the order of their ids (from TFDS, in the order of its labels).

    Raises:
        ValueError: naming the file, if an annotation is missing, damaged or at odds with itself; if
            a category has no training image or no validation image; or, unless `skip_corrupt` is
            set, if an image is missing or cannot be read.
    """
    from keras_ldam.experiments.datasets import images

    if config.imbalance != "none":
        raise ValueError(
            "`imbalance` must be none, as inaturalist2018 is long-tailed already. Received: "
            f"imbalance={config.imbalance!r}"
        )
    root = Path(config.data_dir).absolute()
    if config.data_dir and not root.is_dir():
        raise ValueError(
            f"{root} is not an existing folder; pass that of the release as --data_dir."
        )
    annotated = [(root / file).exists() for file in (TRAIN_FILE, VALIDATION_FILE)]
    if config.data_dir and any(annotated):
        if not all(annotated):
            missing = (TRAIN_FILE, VALIDATION_FILE)[annotated.index(False)]
            raise ValueError(f"{root / missing} is missing; it is part of the release.")
        class_names, train, validation, skipped = _from_release(root, config)
    else:
        class_names, train, validation = _from_tfds(config)
        skipped = []
    train, bad = images.check(train, skip_corrupt=config.skip_corrupt, what="training")
    skipped += bad
    if not config.validation_fraction:
        validation, bad = images.check(
            validation, skip_corrupt=config.skip_corrupt, what="validation"
        )
        skipped += bad
        _check_seen(train.labels, validation.labels, class_names)
    else:
        stay, held = imbalance.hold_out(
            train.labels, config.validation_fraction, config.seed, fold=config.validation_fold
        )
        train, validation = train.take(stay), train.take(held)
    return Data(
        name="inaturalist2018",
        class_names=class_names,
        train=train,
        test=validation,
        test_name="validation",
        # Relative to the folder, which may move.
        skipped=tuple(path.removeprefix(f"{root}{os.sep}") for path in skipped),
    )


def _check_seen(train, validation, class_names):
    """Checks that every class of the training images has validation images."""
    num_classes = len(class_names)
    trained = np.bincount(train, minlength=num_classes) > 0
    absent = np.flatnonzero(trained & (np.bincount(validation, minlength=num_classes) == 0))
    if absent.size:
        more = f" (and {absent.size - 1} more)" if absent.size > 1 else ""
        raise ValueError(
            f"class {class_names[absent[0]]}{more} has training images but no validation image, "
            "so its error cannot be measured."
        )


# ----------------------------------------------------------------------------- the release


def _from_release(root, config):
    """Class names, the two splits, and the images that are annotated but missing."""
    from keras_ldam.experiments.datasets import images

    categories, *train = _read_annotation(root / TRAIN_FILE)
    _, *validation = _read_annotation(root / VALIDATION_FILE, categories)
    loader = images.Loader(images.Files(root), config.image_size)
    present = _Listing(root)
    splits, skipped = [], []
    for source, (files, labels) in ((TRAIN_FILE, train), (VALIDATION_FILE, validation)):
        there = np.array([file in present for file in files], dtype=bool)
        missing = [str(root / files[i]) for i in np.flatnonzero(~there)]
        if missing and not config.skip_corrupt:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise ValueError(
                f"{root / source} names {missing[0]}{more}, which does not exist; restore it, or "
                "leave it out with --skip_corrupt."
            )
        if missing:
            print(f"skips {len(missing)} missing images of {source}", flush=True)
        skipped += missing
        encoded = np.array([os.fsencode(file) for file in files], dtype=np.bytes_)
        splits.append(Split(encoded[there], labels[there], loader))
    return _distinct(categories), *splits, skipped


def _read_annotation(path, categories=None):
    """Category names by id, file names, and labels: ranks of the category ids."""
    values = _read_json(path)
    try:
        listed = {int(c["id"]): str(c.get("name", c["id"])) for c in values["categories"]}
        files = {image["id"]: str(image["file_name"]) for image in values["images"]}
        pairs = [(a["image_id"], int(a["category_id"])) for a in values["annotations"]]
        same = len(listed) == len(values["categories"]) and len(files) == len(values["images"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not an annotation in COCO's layout (images, annotations, categories): "
            f"{type(error).__name__} {error}."
        ) from None
    if not same:
        raise ValueError(f"{path} has two categories or two images with the same id.")
    for file in files.values():
        if file.startswith("/") or ".." in file.split("/"):
            raise ValueError(f"{path} names {file}, which may lie outside the folder: refused.")
    if not pairs:
        raise ValueError(f"{path} annotates no image.")
    if categories is None:
        categories = listed
    elif set(categories) != set(listed):
        odd = min(set(categories) ^ set(listed))
        raise ValueError(f"{path} and the training annotation differ in category {odd}.")
    rank = {identifier: label for label, identifier in enumerate(sorted(categories))}
    label_of = {}
    for image, category in pairs:
        if image not in files:
            raise ValueError(f"{path} annotates image {image!r}, which it does not list.")
        if category not in rank:
            raise ValueError(
                f"{path} puts {files[image]} into category {category}, which it does not list."
            )
        if label_of.setdefault(image, rank[category]) != rank[category]:
            raise ValueError(f"{path} puts {files[image]} into two categories.")
    if len(label_of) < len(files):
        image = next(image for image in files if image not in label_of)
        raise ValueError(f"{path} lists {files[image]} but gives it no category.")
    labels = np.fromiter((label_of[image] for image in files), dtype=np.int32, count=len(files))
    return categories, list(files.values()), labels


def _read_json(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}).") from None


def _distinct(categories):
    """Names of the classes in the order of their ids; the ids if names repeat."""
    names = tuple(categories[identifier] for identifier in sorted(categories))
    if len(set(names)) == len(names):
        return names
    return tuple(str(identifier) for identifier in sorted(categories))


class _Listing:
    """Which files exist; lists each folder once, and asks for no single file."""

    def __init__(self, root):
        self.root = root
        self._names = defaultdict(set)
        self._listed = set()

    def __contains__(self, file):
        folder, name = os.path.split(file)
        if folder not in self._listed:
            self._listed.add(folder)
            try:
                with os.scandir(self.root / folder) as entries:
                    self._names[folder] = {entry.name for entry in entries}
            except (FileNotFoundError, NotADirectoryError):
                pass
        return name in self._names[folder]


# ----------------------------------------------------------------------------- TFDS


def _from_tfds(config):
    source = prepared.builder("i_naturalist2018", config.data_dir)
    class_names = tuple(source.info.features["label"].names)
    return class_names, *(
        _records(source, split, config.image_size) for split in ("train", "validation")
    )


def _records(source, split, image_size):
    """Where each record of a split stands, and its label, from one pass over its files."""
    import tensorflow as tf

    from keras_ldam.experiments.datasets import images

    if source.info.file_format.value != "tfrecord":
        raise ValueError(
            f"{source.data_path} must be in TFDS' default format, tfrecord. Received: "
            f"{source.info.file_format.value}"
        )
    paths = tuple(str(path) for path in source.info.splits[split].filepaths)
    print(f"indexes {len(paths)} files of {source.data_path}, {split}", flush=True)
    places, labels = [], []
    wanted = {"label": tf.io.FixedLenFeature([], tf.int64)}
    for number, path in enumerate(paths):
        records = tf.data.TFRecordDataset(path).map(
            lambda record: (
                tf.strings.length(record),
                tf.io.parse_single_example(record, wanted)["label"],
            ),
            num_parallel_calls=4,
        )
        read = [(int(length), int(label)) for length, label in records.as_numpy_iterator()]
        lengths = np.array([length for length, _ in read], dtype=np.int64)
        # A record is its length (8 bytes), a checksum (4), its contents, a checksum (4).
        starts = np.cumsum(lengths + 16) - lengths - 4
        places.append(np.stack([np.full(len(read), number), starts, lengths], axis=1))
        labels += [label for _, label in read]
    loader = images.Loader(images.Records(paths), image_size)
    return Split(np.concatenate(places), np.array(labels, dtype=np.int32), loader)
