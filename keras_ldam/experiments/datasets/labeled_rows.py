"""Files of rows with a label each: which files, which columns, which part a row is of.

    FILE                              with a column `split`, or a fifth of each class is held out
    DIR/train.csv, DIR/test.csv       test may also be called val, valid or validation

The file's ending is one of `records.EXTENSIONS`. Classes are in the order of their names, or of
their values where all are whole numbers.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_ldam import cells
from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets import class_folders, imbalance, records

LABELS = ("label", "labels", "class", "target", "category", "y")
"""Usual names of the column of the classes, in any capitals."""

_SPLIT = "split"
_TRAIN, _VALIDATION, _TEST = range(3)
_PARTS = {"train": _TRAIN, "training": _TRAIN, "val": _VALIDATION, "valid": _VALIDATION}
_PARTS |= {"validation": _VALIDATION, "dev": _VALIDATION, "test": _TEST}
_NO_CLASS = tuple(word for word in cells.MISSING if word != "none")
"""What stands for a missing label; "none" may be a class."""
_NUMBER = re.compile(r"[+-]?\d+\.\d+")
_MANY_CLASSES = 100
"""More classes than this, in fewer than three times as many rows, are an identifier's."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Some rows with their labels.

    Args:
        columns: The values of the columns that were asked for.
        labels: Class of each row, in the order of their first rows, int32.
        parts: Part of each row.
        where: Maps the number of a row to its place, for messages.
    """

    columns: dict[str, Sequence[Any]]
    labels: np.ndarray
    parts: np.ndarray
    where: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, kept: np.ndarray) -> Rows:
        """The rows at some indices."""
        columns = {name: [values[i] for i in kept] for name, values in self.columns.items()}
        return Rows(
            columns, self.labels[kept], self.parts[kept], lambda i: self.where(int(kept[i]))
        )


class LabeledRows:
    """The rows of `data_dir`.

    Args:
        config: A config; names the files, and the column of the labels.

    Attributes:
        columns: Names of the columns without that of the labels and `split`.
        paths: The files.
        skipped: Places of the rows that were left out, filled by `chunks` and `refuse`.

    Raises:
        ValueError: naming the files, if they are not as above, or there is no one column of labels.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        root = Path(config.data_dir).absolute()
        self._root = root if root.is_dir() else root.parent
        self._files = [(part, records.Records(path)) for part, path in _files(config, root)]
        self.paths = [file.path for _, file in self._files]
        first = self._files[0][1]
        self.columns = list(first.columns)
        for _, other in self._files[1:]:
            missing = sorted(set(first.columns) ^ set(other.columns))
            if missing:
                lacks = other if missing[0] in first.columns else first
                has = first if lacks is other else other
                raise ValueError(f"{lacks.path} has no column {missing[0]!r}, and {has.path} has.")
        self._split = None
        for name in first.columns:
            if name.lower() == _SPLIT:
                self.columns.remove(name)
                self._split = name if len(self._files) == 1 else None
        self.label = column(
            self.columns, config.label_column, LABELS, "label_column", "labels", first.path
        )
        self.columns.remove(self.label)
        self._classes: dict[str, tuple[int, str]] = {}
        self.skipped: list[str] = []

    def chunks(self, names: Sequence[str], *, size: int = 10_000) -> Iterator[Rows]:
        """Yields all rows that have a label, those for validation and test too.

        Args:
            names: The columns to read.
            size: Largest number of rows at a time.
        """
        wanted = [*names, self.label, *([self._split] if self._split else [])]
        total = 0
        for part, file in self._files:
            for chunk in file.chunks(size, names=wanted):
                total += len(chunk.places)
                yield self._rows(part, file, chunk, names)
                self._check_few_classes(total)

    def _rows(self, part, file, chunk, names):
        def where(index):
            return file.where(chunk.places[index])

        labels = np.zeros(len(chunk.places), np.int32)
        good = []
        for index, value in enumerate(chunk.columns[self.label]):
            name = _class_name(as_text(value))
            if name.lower() in _NO_CLASS:
                told = f" ({name!r})" if name else ""
                self.refuse(where(index), f"the label, in column {self.label!r}, is missing{told}")
                continue
            if name not in self._classes:
                self._classes[name] = len(self._classes), where(index)
            labels[index] = self._classes[name][0]
            good.append(index)
        if self._split:
            parts = np.array(
                [self._part(value, where, i) for i, value in enumerate(chunk.columns[self._split])],
                np.uint8,
            )
        else:
            parts = np.full(len(labels), part, np.uint8)
        rows = Rows({name: chunk.columns[name] for name in names}, labels, parts, where)
        return rows if len(good) == len(rows) else rows.take(np.array(good, int))

    def _part(self, value, where, index):
        found = _PARTS.get(as_text(value).lower())
        if found is None:
            known = ", ".join(_PARTS)
            raise ValueError(
                f"{where(index)}: column {self._split!r} is {value!r}, and must be one of {known}."
            )
        return found

    def refuse(self, where: str, reason: str) -> None:
        """Raises `ValueError` for a row that cannot be used; with `skip_corrupt` counts it."""
        if not self._config.skip_corrupt:
            raise ValueError(
                f"{where}: {reason}; mend the row, or leave out such rows with --skip_corrupt."
            )
        self.skipped.append(where.removeprefix(f"{self._root}/"))

    def _check_few_classes(self, rows):
        classes = len(self._classes)
        if classes > _MANY_CLASSES and 3 * classes > rows:
            raise ValueError(
                f"column {self.label!r} of {self.paths[0]} has {classes:,} different values in the "
                f"first {rows:,} rows: it identifies rows and names no classes. Name the column of "
                "the labels with --label_column."
            )

    def divided(
        self, labels: np.ndarray, parts: np.ndarray
    ) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray, str]:
        """Returns the classes, the labels in their order, and the rows for training and test.

        Args:
            labels: The labels of all rows that `chunks` has yielded and that are kept.
            parts: Their parts.

        Returns:
            Class names; labels, int32 `(n,)`; indices of the training rows and of those that are
            evaluated; and `"test"` or `"validation"`, what the latter are.

        Raises:
            ValueError: for fewer than two classes, or a class without a training row.
        """
        found = np.bincount(labels, minlength=len(self._classes))
        # A class may have had rows that were left out alone.
        names = [name for name, (number, _) in self._classes.items() if found[number]]
        if len(names) < 2:
            told = f"the one value {names[0]!r}" if names else "no value"
            raise ValueError(
                f"column {self.label!r} of {self.paths[0]} has {told}; at least two classes are "
                "needed."
            )
        order = sorted(names, key=_sorting(names))
        rank = np.zeros(len(self._classes), np.int32)
        rank[[self._classes[name][0] for name in order]] = np.arange(len(names), dtype=np.int32)
        labels = rank[labels]
        train, test, test_name = self._parts(labels, parts, order)
        for label in np.flatnonzero(np.bincount(labels[train], minlength=len(order)) == 0):
            raise ValueError(
                f"{self._classes[order[label]][1]} has the label {order[label]!r}, and no training "
                "row has it."
            )
        unseen = np.flatnonzero(np.bincount(labels[test], minlength=len(order)) == 0)
        if unseen.size:
            more = f" and {unseen.size - 1} more" if unseen.size > 1 else ""
            print(
                f"no {test_name} row has the label {order[unseen[0]]!r}{more}: the error of such a "
                "class is unknown",
                flush=True,
            )
        return tuple(order), labels, train, test, test_name

    def _parts(self, labels, parts, names):
        present = np.unique(parts)
        train = np.flatnonzero(parts == _TRAIN)
        if present.tolist() == [_TRAIN]:
            print("no test rows: a fifth of each class is held out for validation", flush=True)
            for label in np.flatnonzero(np.bincount(labels, minlength=len(names)) == 1):
                raise ValueError(
                    f"{self._classes[names[label]][1]} is the only row with the label "
                    f"{names[label]!r}, so none can be held out for validation: add rows, remove "
                    "this one, or name training and test rows in a column `split`."
                )
            # The same rows for every seed, so that runs can be compared.
            stay, held = imbalance.hold_out(labels, class_folders.HELD_OUT, seed=0)
            return stay, held, "validation"
        if not train.size:
            raise ValueError(f"{self.paths[0]} has no training row: none is `train` in `split`.")
        if {_VALIDATION, _TEST} <= set(present.tolist()):  # As for folders of images.
            print("evaluates on the validation rows; the test rows are not used", flush=True)
        evaluated = _VALIDATION if _VALIDATION in present else _TEST
        name = "validation" if evaluated == _VALIDATION else "test"
        return train, np.flatnonzero(parts == evaluated), name


def column(
    columns: Sequence[str],
    wanted: str,
    usual: Sequence[str],
    argument: str,
    what: str,
    path: Path,
) -> str:
    """Returns the name of a column: the one that is wanted, or the only one with a usual name.

    Args:
        columns: Names of the columns.
        wanted: The name that the user gave; empty: none.
        usual: Usual names, in lower case.
        argument: Name of the argument that `wanted` is, for messages.
        what: What the column holds, for messages.
        path: The file, for messages.
    """
    listed = ", ".join(map(repr, columns[:20])) + (", …" if len(columns) > 20 else "")
    if wanted:
        if wanted not in columns:
            raise ValueError(
                f"{path} has no column {wanted!r} for the {what}; its columns are {listed}."
            )
        return wanted
    found = [name for name in columns if name.lower() in usual]
    if len(found) != 1:
        which = "no column" if not found else f"{len(found)} columns"
        raise ValueError(
            f"{path} has {which} with a usual name for the {what} ({', '.join(usual)}); name it "
            f"with --{argument}. Its columns are {listed}."
        )
    return found[0]


def as_text(value: Any) -> str:
    """A label or category as text; empty if it is missing. Whole floats are whole numbers."""
    if isinstance(value, str):
        return value.strip()
    if value is None or value != value:  # NaN is what some writers put for nothing.
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):  # Not as 1e-07, which no table holds.
        return np.format_float_positional(value, trim="-")
    return str(value)


def _class_name(text):
    """A label in the form that all its spellings have: 1.0 is 1, and TRUE is true."""
    if text.lower() in ("true", "false"):
        return text.lower()
    return re.sub(r"(?<=\d)\.0+$", "", text) if _NUMBER.fullmatch(text) else text


def fault(text: str) -> str | None:
    """Why a text or category cannot be used, or None: whoever serves the model refuses it."""
    if not text:
        return "is empty"
    if "\0" in text:
        return "holds a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds half of a surrogate pair"
    return None


def _sorting(names):
    try:
        values = {name: int(name) for name in names}
    except ValueError:
        return str
    return lambda name: (values[name], name)


def _files(config, root):
    """Pairs of a part and its file."""
    endings = ", ".join(records.EXTENSIONS)
    if not config.data_dir:
        raise ValueError(
            f"dataset {config.dataset_name} needs --data_dir: a file ({endings}), or a folder with "
            "train and test files."
        )
    if not root.is_dir():
        if not root.exists():
            raise ValueError(f"{root} is not an existing file or folder.")
        return [(_TRAIN, root)]
    found: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        name = path.stem.lower()
        if path.suffix.lower() in records.EXTENSIONS and name in _PARTS:
            if name in found:
                raise ValueError(f"{root} has both {found[name].name} and {path.name}: keep one.")
            found[name] = path
    parts: dict[int, Path] = {}
    for name, path in found.items():
        part = _PARTS[name]
        if part in parts:
            raise ValueError(f"{root} has both {parts[part].name} and {path.name}: keep one.")
        parts[part] = path
    if _TRAIN not in parts:
        raise ValueError(f"{root} has no file of rows called train ({endings}).")
    if {_VALIDATION, _TEST} <= set(parts):
        print(
            f"evaluates on {parts[_VALIDATION].name}; {parts[_TEST].name} is not used", flush=True
        )
        del parts[_TEST]
    return sorted(parts.items())
