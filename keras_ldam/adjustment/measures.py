"""What an adjustment changes on examples that the fit has not seen."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from keras_ldam.adjustment.calibration import TEMPERATURES
from keras_ldam.adjustment.criteria import Criterion, Decisions
from keras_ldam.adjustment.fitting import (
    FEW,
    MOST_CLASSES,
    Examples,
    Fit,
    Fitter,
    draws,
    losses,
)
from keras_ldam.adjustment.held_out import Form

_DRAWS = 500
"""Bootstrap draws for an interval."""


class Interval(NamedTuple):
    """A value with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def measured(
    examples: Examples, after: np.ndarray, goal: Criterion, seed: int
) -> tuple[dict[str, Interval], ...]:
    """Measures before and after, and their difference, with intervals."""
    several = examples.labels.shape[1] > 1
    num_classes = after.shape[2]
    criteria = {
        "balanced_accuracy": Criterion("balanced_accuracy"),
        "macro_f1": Criterion("macro_f1", positive_only=goal.positive_only or several),
        "accuracy": Criterion("accuracy"),
    }
    sides = [
        (logits.argmax(axis=2), losses(logits, examples.labels))
        for logits in (examples.scores, after)
    ]

    def measures(guesses: np.ndarray, nll: np.ndarray, index: Any) -> dict[str, float]:
        weights = examples.weights[index]
        found = Decisions(examples.labels[index], guesses[index], weights, num_classes)
        total = weights.sum(axis=0)
        known = total > 0  # A draw may have no answer for a label that has few.
        values = {name: each.of(found)[known].mean() for name, each in criteria.items()}
        values["nll"] = ((weights * nll[index]).sum(axis=0)[known] / total[known]).mean()
        if goal.name == "cost":
            values["cost"] = -goal.of(found)[known].mean()
        if goal.name == "recall_at":
            c = goal.class_id
            own, held, guessed = (
                each[known, c] for each in (found.right, found.held, found.guessed)
            )
            values["recall"] = (own / np.maximum(held, 1e-12)).mean()
            values["precision"] = (own / np.maximum(guessed, 1e-12)).mean()
        first = {"recall_at": "recall"}.get(goal.name, goal.name)
        return {name: float(values[name]) for name in sorted(values, key=lambda n: n != first)}

    found = [measures(*side, slice(None)) for side in sides]
    names = list(found[0])
    drawn = np.array(
        [
            [list(measures(*side, index).values()) for side in sides]
            for index in draws(examples.labels, _DRAWS, seed)
        ]
    )

    def intervals(values: np.ndarray, drawn: np.ndarray) -> dict[str, Interval]:
        ends = np.quantile(drawn, [0.025, 0.975], axis=0)
        columns = zip(names, values, *ends, strict=True)
        return {name: Interval(*map(float, rest)) for name, *rest in columns}

    before, later = (np.array(list(each.values())) for each in found)
    return (
        intervals(before, drawn[:, 0]),
        intervals(later, drawn[:, 1]),
        intervals(later - before, drawn[:, 1] - drawn[:, 0]),
    )


def remarks_on(
    goal: Criterion,
    fit: Fit,
    fitter: Fitter,
    form: Form,
    present: np.ndarray,
    changes: tuple[dict[str, Interval], ...],
) -> list[str]:
    """Returns what else there is to know of a fit, each in one sentence.

    Args:
        goal: What was fitted for.
        fit: What was found.
        fitter: What could be.
        form: The form of the decisions.
        present: Held-out examples of each class or label.
        changes: What `measured` returned.
    """
    remarks = []
    few = np.flatnonzero(present < FEW)
    if len(few):
        shown = ", ".join(f"{form.name(j)}: {present[j]}" for j in few[:5])
        more = ", …" if len(few) > 5 else ""
        remarks.append(
            f"Too few held-out examples to tell, below {FEW}, for {len(few)} of {len(present)} "
            f"({shown}{more})."
        )
    if fitter.offsets and goal.name not in ("nll", "recall_at") and form.num_classes > MOST_CLASSES:
        remarks.append(
            f"Offsets of {form.num_classes:,} classes were not fitted: for decisions that is done "
            f"up to {MOST_CLASSES} classes."
        )
    if not fit.determined and fitter.factor is None:
        low, high = TEMPERATURES
        remarks.append(
            f"The held-out examples do not determine a temperature in [{low:g}, {high:g}], as if "
            "all of them are right: it stays 1."
        )
    tried = fitter.families(form.num_classes, int(present.min()))
    if goal.name != "recall_at" and tried and not fit.kept.any():
        names = ["τ", "thresholds" if form.num_classes == 2 else "offsets"]
        which = names[tried[0] - 1]
        which = f"Neither τ nor {names[1]}" if len(tried) == 2 else f"Fitting {which} does not"
        remarks.append(
            f"{which} gain more than a standard error on examples outside of the fit: none was "
            "kept."
        )
    before, after, difference = changes
    first = next(iter(before))
    if difference[first].low <= 0 <= difference[first].high:
        remarks.append(f"A difference in {first} cannot be told from none.")
    if goal.name == "recall_at" and after["precision"].low < goal.precision:
        remarks.append(
            f"On examples unseen by the fit the precision is {after['precision']}, which may miss "
            f"{goal.precision:g}: ask for more than you need."
        )
    return remarks
