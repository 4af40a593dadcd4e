"""What several figures share: titles, and names cut to a length."""

from __future__ import annotations

import math
from collections.abc import Sequence

SPLIT_TITLES = {"train": "training", "test": "test", "validation": "validation"}
FEW_CLASSES = 12
"""Up to this many classes are shown side by side under their names."""


MOST_POINTS = 20_000
"""Up to this many classes each is a point; more are shown by quantiles of similar ones."""


def number(value: float | None) -> float:
    """Returns a value, or NaN, which is not drawn, if it is missing."""
    return math.nan if value is None else value


def short(names: Sequence[str], j: int, longest: int) -> str:
    """Returns the name of class j, cut to at most `longest` letters."""
    name = names[j]
    return name if len(name) <= longest else name[: longest - 1] + "…"
