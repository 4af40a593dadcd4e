"""Rows of CSV, TSV, JSONL and Parquet files, column by column, with the place of each row.

A file is read in chunks, so that one larger than the memory can be read. Whatever cannot be read is
an error that names the file and the line; no row is left out silently.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from keras_ldam import extras, files

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
"""Endings of the files that `Records` reads."""

MAX_LINE_BYTES = 2**20
"""Longest line, and longest cell of several lines."""

_CHUNK = 10_000
"""Rows that are in memory together, as Python objects."""


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a file.

    Args:
        places: Where each row is: its first line, or its number in a Parquet file, from 1.
        columns: The values of each column: strings in CSV and TSV, else what the file holds.
    """

    places: list[int]
    columns: dict[str, Sequence[Any]]


class Records:
    """A file of rows with named columns.

    Args:
        path: A file with one of `EXTENSIONS`. CSV may have semicolons or tabs in place of commas,
            whichever its first line has most of. Texts are in UTF-8, or in UTF-16 with a byte
            order mark.

    Attributes:
        columns: Names of the columns. Of JSONL: the keys of the first rows.

    Raises:
        ValueError: naming the file, if it is unreadable, has no row, or a column's name is missing
            or is there twice. `chunks` raises it too, with the line.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._ending = path, path.suffix.lower()
        if self._ending not in EXTENSIONS:
            raise ValueError(
                f"{path} is not a file of rows by its name (known: {', '.join(EXTENSIONS)})."
            )
        if not path.is_file():
            raise ValueError(f"{path} is not an existing file.")
        if not path.stat().st_size:
            raise ValueError(f"{path} is empty.")
        self.columns = self._columns()
        seen: set[str] = set()
        for number, name in enumerate(self.columns, start=1):
            if not name.strip():
                raise ValueError(
                    f"{path}: column {number} has no name in the first line; "
                    "name it, or remove it if it numbers the rows."
                )
            if name in seen:
                raise ValueError(f"{path} has two columns with the name {name!r}: rename one.")
            seen.add(name)
        if next(self.chunks(1), None) is None:
            raise ValueError(f"{path} has a first line with the names of columns, and no row.")

    @property
    def place(self) -> str:
        """What `Chunk.places` count: `"line"` or `"row"`."""
        return "row" if self._ending == ".parquet" else "line"

    def where(self, place: int) -> str:
        """The place of a row, for messages."""
        return f"{self.path}, {self.place} {place}"

    def chunks(self, size: int = _CHUNK, *, names: Sequence[str] | None = None) -> Iterator[Chunk]:
        """Yields all rows in order.

        Args:
            size: Largest number of rows in a chunk.
            names: The columns to yield. Defaults to all.
        """
        names = self.columns if names is None else names
        if self._ending in (".csv", ".tsv"):
            return self._grouped(self._csv_rows(), size, names)
        if self._ending == ".parquet":
            return map(self._flat, self._parquet_chunks(size, names))
        return map(self._flat, self._grouped(self._json_rows(), size, names))

    def _flat(self, chunk):
        """The chunk, bytes as text; raises `ValueError` for other bytes, lists and objects."""
        for name, values in chunk.columns.items():
            for index, (place, value) in enumerate(zip(chunk.places, values, strict=True)):
                if isinstance(value, bytes):
                    try:
                        values[index] = value.decode()
                    except UnicodeDecodeError:
                        raise ValueError(
                            f"{self.where(place)}: column {name!r} holds bytes that are not UTF-8."
                        ) from None
                if isinstance(value, (list, dict)):
                    raise ValueError(
                        f"{self.where(place)}: column {name!r} holds {str(value)[:60]}, and must "
                        "hold single values."
                    )
        return chunk

    def _grouped(self, rows, size, names):
        places_of = {name: place for place, name in enumerate(self.columns)}
        wanted = [places_of[name] for name in names]
        places, kept = [], []
        for place, row in rows:
            places.append(place)
            kept.append([row[index] for index in wanted])
            if len(places) == size:
                yield Chunk(places, dict(zip(names, zip(*kept, strict=True), strict=True)))
                places, kept = [], []
        if places:
            yield Chunk(places, dict(zip(names, zip(*kept, strict=True), strict=True)))

    def _columns(self):
        if self._ending == ".parquet":
            return [str(name) for name in self._parquet().schema_arrow.names]
        if self._ending in (".csv", ".tsv"):
            self._delimiter = self._sniffed()
            _, header = next(self._csv_records(), (0, []))
            # Spaces around a name would be seen by nobody.
            return [name.strip() for name in header]
        names: dict[str, None] = {}
        for number, (_, row) in enumerate(self._objects()):
            if number == _CHUNK:
                break
            names.update(dict.fromkeys(row))
        if not names:
            raise ValueError(f"{self.path} has no row.")
        return list(names)

    # ------------------------------------------------------------------------- CSV and TSV

    def _sniffed(self):
        if self._ending == ".tsv":
            return "\t"
        first = next(iter(lines(self.path)), (1, ""))[1]
        unquoted = re.sub(r'(?:^|(?<=[,;\t]))"(?:[^"]|"")*"?', "", first)
        return max(",;\t", key=unquoted.count)

    def _csv_records(self):
        """The rows with the line in which each begins; rows without any cell are passed over."""
        numbered = lines(self.path)
        reader = csv.reader((line for _, line in numbered), delimiter=self._delimiter, strict=True)
        limit = csv.field_size_limit(MAX_LINE_BYTES)
        try:
            while True:
                begins = reader.line_num + 1
                try:
                    row = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    raise ValueError(self._csv_fault(error, begins, reader.line_num)) from None
                if row:
                    yield begins, row
        finally:
            csv.field_size_limit(limit)

    def _csv_fault(self, error, begins, ends):
        reason = str(error)
        if "unexpected end" in reason:
            reason = "a quote opens and is not closed up to the end of the file"
        elif "field limit" in reason:
            reason = (
                f"a cell that goes on to line {ends} is longer than {MAX_LINE_BYTES:,} characters; "
                "shorten it, or close its quote"
            )
        elif "new-line character" in reason:
            reason = (
                "a carriage return alone ends no line; end lines in line feeds, and quote a cell "
                "that holds one"
            )
        elif "expected after" in reason:
            reason = "a quote closes in the middle of a cell; write a quote inside a cell twice"
        return f"{self.path}, line {begins}: {reason}."

    def _csv_rows(self):
        rows = self._csv_records()
        next(rows, None)
        for place, row in rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"{self.path}, line {place} has {len(row)} cells, and the first line names "
                    f"{len(self.columns)} columns."
                )
            yield place, row

    # ------------------------------------------------------------------------- JSONL

    def _objects(self):
        for place, line in lines(self.path):
            if not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=_once)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{self.path}, line {place} is not JSON: {error}.") from None
            if not isinstance(row, dict):
                raise ValueError(
                    f"{self.path}, line {place} is not a JSON object of columns and values."
                )
            yield place, row

    def _json_rows(self):
        known = set(self.columns)
        for place, row in self._objects():
            unknown = row.keys() - known
            if unknown:
                raise ValueError(
                    f"{self.path}, line {place} has {min(unknown)!r}, which is in none of the "
                    f"first {_CHUNK} rows."
                )
            yield place, [row.get(name) for name in self.columns]

    # ------------------------------------------------------------------------- Parquet

    def _parquet(self):
        with extras.needed("experiments", by="reading Parquet files"):
            import pyarrow
            import pyarrow.parquet
        try:
            return pyarrow.parquet.ParquetFile(self.path)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{self.path} is not a Parquet file: {files.reason(error)}") from None

    def _parquet_chunks(self, size, names):
        begins = 1
        for batch in self._parquet().iter_batches(batch_size=size, columns=list(names)):
            columns = {name: self._values(name, batch.column(name), begins) for name in names}
            if batch.num_rows:
                yield Chunk(list(range(begins, begins + batch.num_rows)), columns)
            begins += batch.num_rows

    def _values(self, name, column, begins):
        import pyarrow

        if pyarrow.types.is_timestamp(column.type):
            unit, zone = column.type.unit, column.type.tz
            unit = "us" if unit == "ns" else unit  # Python has no nanoseconds.
            column = column.cast(pyarrow.timestamp(unit, zone and "UTC"), safe=False)
        try:
            return column.to_pylist()
        except (ValueError, OverflowError) as error:  # Such as of the year 10000.
            raise ValueError(
                f"{self.path}: column {name!r} cannot be read from row {begins} on: "
                f"{files.reason(error)}"
            ) from None


def _once(pairs):
    """A JSON object; raises `ValueError` for a key that it has twice."""
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"it has the key {max(keys, key=keys.count)!r} twice")
    return row


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the lines of a text file with their numbers, from 1.

    Raises:
        ValueError: naming file and line, for one that is too long, not in the file's encoding, or
            that holds NUL.
    """
    number = 0
    with open(path, "rb") as raw:
        encoding = _encoding(raw.read(4))
        raw.seek(0)
        # In UTF-8 a line is decoded by itself, so that the one at fault is known.
        alone = encoding == "utf-8"
        file = raw if alone else io.TextIOWrapper(raw, encoding, newline="\n")
        try:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise ValueError(
                        f"{path}, line {number} is longer than {MAX_LINE_BYTES:,} bytes; lines end "
                        "in line feeds."
                    )
                if alone:
                    line = line.decode()
                if number == 1:
                    line = line.removeprefix("\ufeff")
                if "\0" in line:
                    raise ValueError(
                        f"{path}, line {number} holds a NUL character, as a file in UTF-16 without "
                        "its byte order mark does: convert it to UTF-8."
                    )
                yield number, line
        except UnicodeError:
            place = f"line {number}" if alone else f"a line after {number}"
            raise ValueError(
                f"{path}: {place} is not {encoding.upper()}: convert the whole file to UTF-8."
            ) from None


def _encoding(head):
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    return "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"


def fingerprint(paths: Iterable[Path]) -> str:
    """A number for the contents of files, as text: other contents have another one."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with open(path, "rb") as file:
            digest.update(
                hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
            )
    return digest.hexdigest()
