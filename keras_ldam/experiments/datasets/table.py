"""A table of your own: rows of numbers, categories and dates, with a label each.

    FILE                              CSV, TSV, JSONL or Parquet; a column `split` names the
                                      training and test rows, or a fifth of each class is held out
    DIR/train.csv, DIR/test.csv       the two parts, in any of these forms

The file is read once, in pieces. Each row becomes a vector, see `row_encoder`, in a temporary file
in `$TMPDIR`, from which training reads it, so that the memory holds the labels alone.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_ldam import cells
from keras_ldam.experiments import row_encoder
from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets import imbalance, labeled_rows, records
from keras_ldam.experiments.datasets.data import Data, OnDisk, Split

NETWORK = "table_mlp"
TITLE = "Table"
MAX_CATEGORIES = 100_000
"""Different values of a column of categories."""

_MANY = 100
"""More categories than this, in fewer than twice as many rows, are an identifier's."""
_AT_ONCE = 100_000
"""Rows of the temporary file that are in memory together."""


def load(config: Config, *, columns: Sequence[Mapping[str, Any]] | None = None) -> Data:
    """Returns the rows of `data_dir` as vectors; of these, as many as the imbalance leaves.

    Args:
        config: See `Config`.
        columns: What each column is, and the known categories. Defaults to what the columns hold,
            and the categories that at least two kept training rows have.

    Raises:
        ValueError: naming the file and the line, if the layout is none of the above or a value
            cannot be used.
    """
    rows = labeled_rows.LabeledRows(config)
    names = _features(config, rows)
    table = _Table(config, names, rows, columns)
    labels, parts = [], []
    with tempfile.TemporaryFile() as file:
        for chunk in rows.chunks(names):
            if len(chunk):  # None has a label otherwise.
                file.write(table.encoded(chunk).tobytes())
            labels.append(chunk.labels)
            parts.append(chunk.parts)
        file.flush()
        class_names, labels, train, test, test_name = rows.divided(
            np.concatenate(labels), np.concatenate(parts)
        )
        shape = (len(labels), table.width)
        values = np.memmap(file, np.float32, mode="r+", shape=shape)
    data = imbalance.imbalanced(
        config,
        class_names,
        Split(OnDisk(values, train), labels[train]),
        Split(OnDisk(values, test), labels[test]),
        test_name=test_name,
        skipped=rows.skipped,
    )
    _tell_duplicates(values, data)
    known = table.known_categories(data.train.examples) if columns is None else columns
    table.number_categories(values, known)
    return dataclasses.replace(
        data,
        columns=tuple(dict(column) for column in known),
        fingerprint=records.fingerprint(rows.paths),
    )


def serving(config: Config, data: Mapping[str, Any]) -> dict[str, Any]:
    """A served row has the same columns, and the export encodes it as training did."""
    kinds = {"number": "number", "date": "text", "category": "text"}
    return {
        "columns": {column["name"]: kinds[column["kind"]] for column in data["columns"]},
        "encode": row_encoder.graph(data["columns"]),
    }


class _Table:
    """Encodes rows; numbers categories in the order in which they come, until all are known.

    Args:
        config: See `Config`.
        names: The columns.
        rows: The rows, for messages.
        columns: What each column is; None: what its first rows hold.
    """

    def __init__(self, config, names, rows, columns):
        self._names, self._rows = names, rows
        self._as_categories = _listed(config.category_columns)
        self.columns = None
        if columns is not None:
            given = [column["name"] for column in columns]
            if given != names:
                other = sorted(set(given) ^ set(names)) or names
                raise ValueError(
                    f"{rows.paths[0]} has other columns than the run's data, as {other[0]!r}."
                )
            self._begin([column["kind"] for column in columns])
        self._total = 0

    def _begin(self, kinds):
        self.columns = tuple(
            {"name": name, "kind": kind, **({"categories": []} if kind == "category" else {})}
            for name, kind in zip(self._names, kinds, strict=True)
        )
        self._numbers, ids = row_encoder.width(self.columns)
        self.width = self._numbers + len(ids)
        # The empty text is a missing value.
        self._codes = [{"": 0} for _ in ids]

    def encoded(self, rows: labeled_rows.Rows) -> np.ndarray:
        """The vectors of some rows, float32, with preliminary numbers of categories."""
        if self.columns is None:
            self._begin([self._kind(name, rows) for name in self._names])
            _tell_kinds(self.columns)
        block = np.empty((len(rows), self.width), np.float32)
        self._total += len(rows)
        at = {"number": 0, "date": 0, "category": 0}
        numbers = sum(column["kind"] == "number" for column in self.columns)
        for column in self.columns:
            name, kind = column["name"], column["kind"]
            values, place = rows.columns[name], at[kind]
            if kind == "number":
                block[:, place] = self._read_numbers(name, values, rows)
            elif kind == "date":
                parts = len(row_encoder.DATE_PARTS)
                start = numbers + parts * place
                block[:, start : start + parts] = self._read_dates(name, values, rows)
            else:
                block[:, self._numbers + place] = self._read_categories(
                    name, values, self._codes[place], rows
                )
            at[kind] += 1
        return block

    def _kind(self, name, rows):
        if name in self._as_categories:
            return "category"
        found = {"number": 0, "date": 0, "category": 0}
        first = {}
        for index, value in enumerate(rows.columns[name]):
            kind = _kind_of(value)
            if kind is None:
                continue
            if kind == "category" and row_encoder.is_outside_utc(_text(value)):
                raise ValueError(
                    f"{rows.where(index)}: column {name!r} holds a time that is not in UTC, "
                    f"{value}: convert the column to UTC, or name it in --category_columns."
                )
            found[kind] += 1
            first.setdefault(kind, index)
        known = sum(found.values())
        if not known:
            raise ValueError(
                f"column {name!r} of {self._rows.paths[0]} has no value in the first {len(rows):,} "
                f"rows: leave it out with --ignore_columns."
            )
        kind = max(found, key=found.get)
        if kind != "category" and found[kind] < known:
            other = min(index for other, index in first.items() if other != kind)
            self._refuse_mixed(name, kind, rows, other)
        return "category" if found[kind] < known else kind

    def _refuse_mixed(self, name, kind, rows, index):
        value = str(rows.columns[name][index])[:60]
        raise ValueError(
            f"{rows.where(index)}: column {name!r} holds {kind}s, and here {value!r}: correct it, "
            "leave the cell empty if the value is missing, or name the column in "
            "--category_columns."
        )

    def _read_numbers(self, name, values, rows):
        numbers = np.empty(len(values))
        for index, value in enumerate(values):
            try:
                numbers[index] = cells.number(value)
            except (TypeError, ValueError):
                self._refuse_mixed(name, "number", rows, index)
        bad = np.abs(numbers) > np.finfo(np.float32).max
        if bad.any():
            index = int(np.argmax(bad))
            value = str(values[index])[:60]
            raise ValueError(
                f"{rows.where(index)}: column {name!r} holds {value}, which is infinite or "
                "beyond 3.4e38: correct it, or leave the cell empty if the value is missing."
            )
        return numbers

    def _read_dates(self, name, values, rows):
        dates = np.full((len(values), len(row_encoder.DATE_PARTS)), np.nan)
        for index, value in enumerate(values):
            kind = _kind_of(value)
            if kind is None:
                continue
            if kind != "date":
                self._refuse_mixed(name, "date", rows, index)
            dates[index] = row_encoder.date_parts(_text(value))
        return dates

    def _read_categories(self, name, values, codes, rows):
        known = len(codes)
        found = [codes.setdefault(row_encoder.category(_text(v)), len(codes)) for v in values]
        for code, category in enumerate(list(codes)[known:], start=known):
            reason = labeled_rows.fault(category)
            if reason is not None:
                raise ValueError(f"{rows.where(found.index(code))}: column {name!r} {reason}.")
        number = len(codes) - 1
        if number > MAX_CATEGORIES or (number > _MANY and 2 * number > self._total):
            raise ValueError(
                f"column {name!r} of {self._rows.paths[0]} has {number:,} different values in the "
                f"first {self._total:,} rows: it identifies rows, or is a text. Leave it out with "
                "--ignore_columns."
            )
        return found

    def known_categories(self, train: OnDisk) -> list[dict[str, Any]]:
        """The columns, with the categories of at least two training rows, the most frequent first.

        A category of a single row counts as unknown, so that the network learns what to make of
        one.
        """
        tallies = [np.zeros(len(codes), np.int64) for codes in self._codes]
        for start in range(0, len(train), _AT_ONCE):
            block = train[np.arange(start, min(start + _AT_ONCE, len(train)))]
            for place, tally in enumerate(tallies):
                ids = block[:, self._numbers + place].astype(np.int64)
                tally += np.bincount(ids, minlength=len(tally))
        known = []
        pairs = iter(zip(self._codes, tallies, strict=True))
        for column in self.columns:
            column = dict(column)
            if column["kind"] == "category":
                codes, tally = next(pairs)
                names = [name for name, code in codes.items() if code and tally[code] > 1]
                column["categories"] = sorted(names, key=lambda n: (-tally[codes[n]], n))
            known.append(column)
        return known

    def number_categories(self, values: np.ndarray, known: Sequence[Mapping[str, Any]]) -> None:
        """Gives the categories in the file their final numbers."""
        tables = []
        given = (column["categories"] for column in known if column["kind"] == "category")
        for codes, names in zip(self._codes, given, strict=True):
            ids = {name: number for number, name in enumerate(names, start=2)}
            tables.append(np.array([0, *(ids.get(n, 1) for n in list(codes)[1:])], np.float32))
        for start in range(0, len(values) if tables else 0, _AT_ONCE):
            block = values[start : start + _AT_ONCE]
            for place, table in enumerate(tables, start=self._numbers):
                block[:, place] = table[block[:, place].astype(np.int64)]


def _features(config, rows):
    """The columns that are not left out; checks those that the config names."""
    ignored, categories = _listed(config.ignore_columns), _listed(config.category_columns)
    for argument, names in (("ignore_columns", ignored), ("category_columns", categories)):
        for name in names:
            if name not in rows.columns:
                known = ", ".join(map(repr, rows.columns[:20]))
                raise ValueError(
                    f"`{argument}` names {name!r}, and {rows.paths[0]} has the columns {known}."
                )
    names = [name for name in rows.columns if name not in ignored]
    if not names:
        raise ValueError(f"{rows.paths[0]} has no column but that of the labels.")
    return names


def _listed(names):
    """The names in a list with commas; quotes are for a name that has one itself."""
    listed = next(csv.reader([names], skipinitialspace=True), [])
    return [name.strip() for name in listed if name.strip()]


def _text(value):
    if isinstance(value, datetime.date):  # Times are such dates.
        return value.isoformat()
    return labeled_rows.as_text(value)


def _kind_of(value):
    """`"number"`, `"date"` or `"category"`; None for a missing value."""
    text = row_encoder.category(_text(value))
    if not text:
        return None
    if row_encoder.date_parts(text) is not None:
        return "date"
    try:
        cells.number(text)
    except ValueError:
        return "category"
    return "number"


def _tell_kinds(columns):
    kinds = {"number": "numbers", "date": "dates", "category": "categories"}
    listed = {
        plural: [column["name"] for column in columns if column["kind"] == kind]
        for kind, plural in kinds.items()
    }
    said = (f"{plural} {', '.join(names)}" for plural, names in listed.items() if names)
    print(f"columns: {'; '.join(said)}"[:1000], flush=True)


def _tell_duplicates(values, data):
    known = np.unique(_hashes(values, data.train.examples.indices))
    twice = int(np.isin(_hashes(values, data.test.examples.indices), known).sum())
    if twice:
        print(
            f"{twice} of the {len(data.test)} {data.test_name} rows are training rows too: the "
            "errors on them are those on known rows",
            flush=True,
        )


def _hashes(values, indices):
    """A number of 64 bits for each row, the same for equal rows."""
    factors = np.random.default_rng(0).integers(1, 2**63, values.shape[1], dtype=np.uint64)
    hashes = np.empty(len(indices), np.uint64)
    for start in range(0, len(indices), _AT_ONCE):
        block = np.array(values[indices[start : start + _AT_ONCE]])
        bits = (block.view(np.uint32).astype(np.uint64) + 1) * (factors | 1)
        bits ^= bits >> 29
        hashes[start : start + len(block)] = (bits * (factors | 1)).sum(axis=1, dtype=np.uint64)
    return hashes
