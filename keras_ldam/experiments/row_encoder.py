"""From the columns of a table's rows to one vector each: in NumPy, and in TensorFlow's graph.

The vector holds the numbers of number columns (NaN where missing), then four numbers for each date
(`DATE_PARTS`), then the id of each category: 0 is missing, 1 is one that training has not known,
and category i has id i + 2. The graph is exported with the model.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_ldam import cells, extras

DATE_PARTS = ("days since 1970", "month", "weekday from Monday", "hour")
_DAY = r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])"
_TIME = r"[T ](?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d+)?)?"
_DATE = re.compile(rf"({_DAY}(?:{_TIME})?)Z?|({_DAY}{_TIME})[+-]00(?::?00)?", re.ASCII)
_WITH_OFFSET = re.compile(rf"{_DAY}{_TIME}[+-]\d\d(?::?\d\d)?", re.ASCII)
_SPACES = "[\t-\r\x1c- \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"
"""What `str.strip` takes off; `tf.strings.strip` knows the spaces of ASCII alone."""
_DECIMAL = re.compile(r"^(-?[0-9]+)(?:\.0+|(\.[0-9]*[1-9])0+)$")
"""Zeros at the end: JSON tells 1 and 1.0, or 1.5 and 1.50, apart no more than its readers do."""
_MONTHS = np.array([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
_EPOCH = datetime.datetime(1970, 1, 1)


def category(text: str) -> str:
    """A category in the form in which it is looked up; empty if it is missing."""
    text = text.strip()
    lower = text.lower()
    if lower in cells.MISSING:
        return ""
    if lower in ("true", "false"):
        return lower
    return _DECIMAL.sub(r"\1\2", text) if text.endswith("0") else text


def date_parts(text: str) -> tuple[float, float, float, float] | None:
    """The numbers of a date, in the order of `DATE_PARTS`; None if the text is no date.

    Args:
        text: `2026-11-29`, or with a time: `2026-11-29 14:30`, `2026-11-29T14:30:05Z`. An offset
            from UTC must be 0.
    """
    match = _DATE.fullmatch(text)
    if not match:
        return None
    try:
        date = datetime.datetime.fromisoformat(match[1] or match[2])
    except ValueError:  # Such as the 30th of February.
        return None
    days = (date - _EPOCH).total_seconds() / 86_400
    return days, date.month, date.weekday(), date.hour


def is_outside_utc(text: str) -> bool:
    """Whether a text is a time with an offset from UTC, which `date_parts` takes for no date."""
    return bool(_WITH_OFFSET.fullmatch(text)) and not _DATE.fullmatch(text)


def width(columns: Sequence[Mapping[str, Any]]) -> tuple[int, list[int]]:
    """Returns how many numbers lead the vector, and how many ids each category column has."""
    sizes = {"number": 1, "date": len(DATE_PARTS), "category": 0}
    ids = [len(c["categories"]) + 2 for c in columns if c["kind"] == "category"]
    return sum(sizes[column["kind"]] for column in columns), ids


def graph(columns: Sequence[Mapping[str, Any]]) -> Any:
    """Returns the encoder as a `tf.Module`, from tensors by column to vectors.

    Args:
        columns: `{"name": …, "kind": "number" | "date" | "category"}`, for the latter also
            `"categories"`.
    """
    with extras.needed("experiments", by="reading the rows of a table"):
        import tensorflow as tf

    class Encoder(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lookups = [
                # It gives the ids above: 0 to the mask, 1 to the unknown.
                keras.layers.StringLookup(vocabulary=list(column["categories"]), mask_token="")
                if column["categories"]
                else None
                for column in columns
                if column["kind"] == "category"
            ]

        @property
        def card_limits(self) -> list[str]:
            """What a model card says of it."""
            dates = ["Refused: dates that are not like 2026-11-29."] if names_of("date") else []
            return [
                "A missing value, and a category that training has not known, are answered like "
                "any other: export.json lists the columns, of which any may be missing.",
                *dates,
            ]

        def __call__(self, given: Mapping[str, tf.Tensor]) -> tf.Tensor:
            def of(kind: str) -> list[tf.Tensor]:
                return [given[name] for name in names_of(kind)]

            dates = [part for name in names_of("date") for part in parts_of(name, given[name])]
            ids = [
                ids_of(lookup, text)
                for lookup, text in zip(self.lookups, of("category"), strict=True)
            ]
            return tf.stack([tf.cast(x, tf.float32) for x in [*of("number"), *dates, *ids]], axis=1)

    def names_of(kind: str) -> list[str]:
        return [column["name"] for column in columns if column["kind"] == kind]

    def plain(text: tf.Tensor) -> tf.Tensor:
        text = tf.strings.regex_replace(text, f"^{_SPACES}|{_SPACES}$", "")
        return tf.where(is_one_of(cells.MISSING, text), "", text)

    def is_one_of(words: Sequence[str], text: tf.Tensor) -> tf.Tensor:
        # Not by (?i:…), to which the long s (U+017F) is an s, as it is not to `str.lower`.
        pattern = "|".join(map(re.escape, words))
        return tf.strings.regex_full_match(tf.strings.lower(text), pattern)

    def ids_of(lookup: Any, text: tf.Tensor) -> tf.Tensor:
        text = plain(text)
        text = tf.where(is_one_of(("true", "false"), text), tf.strings.lower(text), text)
        text = tf.strings.regex_replace(text, _DECIMAL.pattern, r"\1\2")
        if lookup is None:
            return tf.cast(text != "", tf.int64)
        return lookup(text)

    def parts_of(name: str, text: tf.Tensor) -> list[tf.Tensor]:
        text = plain(text)
        known = tf.strings.regex_full_match(text, _DATE.pattern)
        missing = text == ""
        text = tf.where(known, text, "1970-01-01")
        time = r"^.{10}(?:.(\d\d):(\d\d)(?::(\d\d))?)?.*$"  # A part that is absent reads as 0.

        def number(at: int, length: int) -> tf.Tensor:
            return tf.strings.to_number(tf.strings.substr(text, at, length), tf.int64)

        year, month, day = number(0, 4), number(5, 2), number(8, 2)
        hour, minute, second = (
            tf.strings.to_number(tf.strings.regex_replace(text, time, rf"0\{group}"), tf.int64)
            for group in (1, 2, 3)
        )
        leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
        length = tf.gather(_MONTHS, month - 1) + tf.cast(leap & (month == 2), tf.int64)
        right = missing | (known & (day <= length) & (year > 0))
        message = (
            f"column {name}: a date must be like 2026-11-29 or 2026-11-29T14:30:05, in UTC, and "
            "an existing day: number in the batch, from 0:"
        )
        with tf.control_dependencies(
            [tf.debugging.Assert(tf.reduce_all(right), [message, tf.where(~right)[:1, 0]])]
        ):
            year = tf.identity(year)
        # Days of the Gregorian calendar, counted from a March, so that a leap day ends a year.
        late = tf.cast(month <= 2, tf.int64)
        years = year - late
        of_year = (153 * (month + 12 * late - 3) + 2) // 5 + day - 1
        days = 365 * years + years // 4 - years // 100 + years // 400 + of_year - 719_468
        seconds = tf.cast(3600 * hour + 60 * minute + second, tf.float64)
        whole = tf.cast(days, tf.float64) + seconds / 86_400
        parts = [whole, month, (days + 3) % 7, hour]
        return [tf.where(known, tf.cast(part, tf.float32), float("nan")) for part in parts]

    return Encoder()
