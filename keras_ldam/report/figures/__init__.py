"""Figures of runs: functions of runs and a `Canvas`, which return a Matplotlib figure, or None if
the runs do not hold what it shows.
"""

from keras_ldam.report.figures.bound import trade_off
from keras_ldam.report.figures.classes import (
    class_errors,
    groups,
    margins,
    mean_errors,
    with_margins,
)
from keras_ldam.report.figures.common import FEW_CLASSES, MOST_POINTS
from keras_ldam.report.figures.diagnoses import (
    FEWEST_GUESSES,
    confused,
    confusion,
    diagnosed,
    reliability,
)
from keras_ldam.report.figures.runs import curves, errors, with_history

__all__ = [
    "FEWEST_GUESSES",
    "FEW_CLASSES",
    "MOST_POINTS",
    "class_errors",
    "confused",
    "confusion",
    "curves",
    "diagnosed",
    "errors",
    "groups",
    "margins",
    "mean_errors",
    "reliability",
    "trade_off",
    "with_history",
    "with_margins",
]
