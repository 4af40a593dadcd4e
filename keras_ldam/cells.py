"""The cells of a table's rows, as training and serving read them."""

from __future__ import annotations

import math
from typing import Any

MISSING = ("", "na", "n/a", "nan", "null", "none", "?")
"""What stands for a missing value, in any capitals."""


def number(value: Any) -> float:
    """Returns the number that a cell holds; NaN if it is missing.

    Args:
        value: A number, a text, or None.

    Raises:
        ValueError, TypeError: if it is neither a number nor missing.
    """
    if value is None:
        return math.nan
    if isinstance(value, bool):
        raise TypeError(value)
    if isinstance(value, str):
        if value.strip().lower() in MISSING:
            return math.nan
        if "_" in value:  # Python reads 10_200 as 10200.
            raise ValueError(value)
    try:
        return float(value)
    except OverflowError:  # A whole number of JSON may have any length.
        return math.inf
