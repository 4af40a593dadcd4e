"""Sums per class that do not stop growing: float32 alone ends at 2**24 examples."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

_PARTS = 64
_MOST_CELLS = 2**16


def mean_over(values: Any, which: Any) -> Any:
    """Returns the mean of some values, NaN of none.

    Args:
        values: A vector; those that do not count may be NaN.
        which: 1 for each that counts, 0 for the others, in float32.
    """
    return ratio(ops.sum(ops.where(which > 0, values, 0.0)), ops.sum(which))


def ratio(part: Any, whole: Any) -> Any:
    """Returns part / whole, NaN where the whole is 0."""
    return ops.where(whole > 0, ops.divide_no_nan(part, whole), float("nan"))


class ClassSums:
    """A sum per class over all batches, to about 48 bits.

    Args:
        metric: The metric that owns the variables.
        size: Number of sums.
        name: Name of the variables.
    """

    def __init__(self, metric: keras.metrics.Metric, size: int, name: str):
        self.size = size
        # Float32 whatever floatx is: in bfloat16 a count would end at 256.
        self._high, self._low = (
            metric.add_variable((size,), initializer="zeros", name=part, dtype="float32")
            for part in (name, f"{name}_rest")
        )

    def add(self, values: Any, classes: Any) -> None:
        """Adds values `(n,)` to the sums of their classes, int32 `(n,)` in 0 … size - 1."""
        # In several parts, so that none of them adds ones to a sum of 2**24.
        parts = max(1, min(_PARTS, _MOST_CELLS // self.size))
        place = ops.cast(classes, "int32")
        if parts > 1:
            part = ops.arange(ops.shape(classes)[0], dtype="int32") % parts
            place = ops.cast(place * parts + part, "int32")
        added = ops.segment_sum(values, place, self.size * parts)
        if parts > 1:
            added = ops.sum(ops.reshape(added, (self.size, parts)), axis=1)
        # What the addition rounds off is kept (Knuth's two-sum).
        high, low = ops.convert_to_tensor(self._high), ops.convert_to_tensor(self._low)
        total = high + added
        back = total - high
        rest = (high - (total - back)) + (added - back)
        rest = ops.where(ops.isfinite(total), rest, 0.0)  # Nothing is left of what is infinite.
        self._high.assign(total)
        self._low.assign(low + rest)

    def value(self) -> Any:
        """Returns the sums, float32 `(size,)`."""
        return ops.convert_to_tensor(self._high) + ops.convert_to_tensor(self._low)
