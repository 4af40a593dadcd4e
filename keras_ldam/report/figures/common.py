"""What several figures share."""

from __future__ import annotations

import math

SPLIT_TITLES = {"train": "training", "test": "test", "validation": "validation"}
FEW_CLASSES = 12
"""Up to this many classes stand side by side under their names."""


def number(value: float | None) -> float:
    """A value that may be missing, as one that is not drawn."""
    return math.nan if value is None else value


def short(names: list, j: int, longest: int) -> str:
    """The name of class j in at most `longest` letters."""
    name = str(names[j]) if j < len(names) else str(j)
    return name if len(name) <= longest else name[: longest - 1] + "…"
