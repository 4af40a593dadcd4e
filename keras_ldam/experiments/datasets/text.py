"""Texts of your own with a label each.

    FILE                              CSV, TSV, JSONL or Parquet with a column of texts and one of
                                      labels; a column `split` names the training and test rows
    DIR/train.csv, DIR/test.csv       the two parts, in any of these forms
    DIR/CLASS/TEXT.txt                one sub-folder for each class
    DIR/train/CLASS/TEXT.txt, DIR/test/CLASS/TEXT.txt

test may also be called val, valid or validation. Where there is none, a fifth of each class is held
out, the same for every seed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets import (
    class_folders,
    imbalance,
    labeled_rows,
    records,
    word_ids,
)
from keras_ldam.experiments.datasets.data import Data

NETWORK = "bilstm"
DIVIDES_CORES = True
TITLE = "Texts"
TEXTS = ("text", "texts", "sentence", "review", "content", "message", "comment", "body")
"""Usual names of the column of the texts, in any capitals."""

embedding = word_ids.embedding


@dataclasses.dataclass(frozen=True)
class Texts:
    """All texts, with the two parts of them."""

    class_names: tuple[str, ...]
    texts: list[str]
    labels: np.ndarray
    train: np.ndarray
    test: np.ndarray
    test_name: str
    skipped: list[str]
    fingerprint: str


def load(config: Config, *, vocabulary: Sequence[str] | None = None) -> Data:
    """Returns the texts of `data_dir` as word ids; of these, as many as the imbalance leaves.

    Args:
        config: See `Config`.
        vocabulary: The known words. Defaults to those of the kept training texts.

    Raises:
        ValueError: naming the file and the line, if the layout is none of the above or a text or a
            label cannot be used.
    """
    found = read(config)
    labels = found.labels[found.train]
    counts = imbalance.profile(
        config.imbalance, labels, len(found.class_names), config.imbalance_ratio
    )
    kept, held = imbalance.select(labels, counts, config)
    train = found.train[kept]
    test = found.test if held is None else found.train[held]
    test_name = found.test_name if held is None else "validation"
    _tell_duplicates(found.texts, train, test, test_name)
    train, test, vocabulary = word_ids.splits(
        config,
        *(([found.texts[i] for i in part], found.labels[part]) for part in (train, test)),
        vocabulary=vocabulary,
    )
    wordless = 0 if vocabulary is None else np.count_nonzero(train.examples.lengths == 0)
    if wordless:
        print(
            f"Training texts without a word: {wordless}. They are all the same to the model, and "
            "an exported model refuses them.",
            flush=True,
        )
    return Data(
        config.dataset_name,
        found.class_names,
        train=train,
        test=test,
        test_name=test_name,
        vocabulary=vocabulary,
        skipped=tuple(found.skipped),
        fingerprint=found.fingerprint,
    )


def read(config: Config) -> Texts:
    """Returns all texts of `data_dir`; raises `ValueError` as `load` does."""
    root = Path(config.data_dir).absolute()
    in_folders = (
        config.data_dir
        and root.is_dir()
        and not any(path.suffix.lower() in records.EXTENSIONS for path in root.iterdir())
    )
    return _from_folders(config, root) if in_folders else _from_rows(config)


def _tell_duplicates(texts, train, test, test_name):
    known = {texts[i] for i in train}
    twice = sum(texts[i] in known for i in test)
    if twice:
        print(
            f"{twice} of the {len(test)} {test_name} texts are training texts too: the errors on "
            "them are those on known texts",
            flush=True,
        )


def _from_rows(config):
    rows = labeled_rows.LabeledRows(config)
    name = labeled_rows.column(
        rows.columns, config.text_column, TEXTS, "text_column", "texts", rows.paths[0]
    )
    texts, labels, parts = [], [], []
    for chunk in rows.chunks([name]):
        kept = []
        for index, value in enumerate(chunk.columns[name]):
            text = labeled_rows.as_text(value)
            reason = labeled_rows.fault(text)
            if reason is None:
                texts.append(text)
                kept.append(index)
            else:
                rows.refuse(chunk.where(index), f"the text, in column {name!r}, {reason}")
        if kept and len(kept) == len(texts):  # The first ones.
            _check_not_numbers(texts, name, chunk.where(kept[0]))
        labels.append(chunk.labels[kept])
        parts.append(chunk.parts[kept])
    names, *divided = rows.divided(np.concatenate(labels), np.concatenate(parts))
    return Texts(names, texts, *divided, rows.skipped, records.fingerprint(rows.paths))


def _from_folders(config, root):
    parts = class_folders.parts(root)
    class_names = class_folders.classes(root / parts[0], "text")
    texts, labels, skipped, paths, sizes = [], [], [], [], []
    for part in parts:
        folder = root / part
        names, found, strange = class_folders.files(folder, class_names, (".txt",), "text")
        if strange and not config.skip_corrupt:
            raise ValueError(
                f"{strange[0]} is not a text by its name (.txt); remove it, or leave it out with "
                "--skip_corrupt."
            )
        skipped += strange
        kept = []
        for index, name in enumerate(names):
            text = "".join(line for _, line in records.lines(folder / name)).strip()
            reason = labeled_rows.fault(text)
            if reason is None:
                texts.append(text)
                kept.append(index)
            elif config.skip_corrupt:
                skipped.append(str(folder / name))
            else:
                raise ValueError(
                    f"{folder / name} {reason}; remove it, or leave it out with --skip_corrupt."
                )
        class_folders.check_none_empty(found[kept], class_names, folder, "text")
        labels.append(found[kept])
        paths += [folder / name for name in names]
        sizes.append(len(kept))
    if len(parts) == 1:
        print("no test/: a fifth of each class is held out for validation", flush=True)
        train, test = class_folders.hold_out(labels[0], class_names, root, "text")
    else:
        train, test = np.split(np.arange(sum(sizes)), sizes[:1])
    return Texts(
        class_names,
        texts,
        np.concatenate(labels),
        train,
        test,
        "test" if parts[-1].lower() == "test" else "validation",
        [path.removeprefix(f"{root}/") for path in skipped],
        records.fingerprint(paths),
    )


def _check_not_numbers(texts, name, where):
    try:
        first, *_ = map(float, texts)
    except ValueError:
        return
    raise ValueError(
        f"{where}: column {name!r} holds numbers, as here {first:g}, and no texts; name that of "
        "the texts with --text_column."
    )
