"""The record that a report is made from: one trained model, and what is known of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model, as a report shows it.

    Runs of one title and one group are seeds of the same thing: a report gives their mean.

    Args:
        title: Its name in tables and figures.
        class_names: Name of each class, in class order.
        errors: Errors in percent, as from `keras_ldam.evaluation.class_errors`: `mean_error`,
            `per_class_error` (None or NaN for a class without an example), and others. For very
            many classes take `keras_ldam.evaluation.errors_of_guesses`.
        split: Name of the split that the errors are measured on.
        seed: Its seed; None if unknown.
        group: The runs that it is compared with, such as `"long-tailed, ratio 100"`; `""` if there
            is one group only.
        counts: Training examples per class, shape `(num_classes,)`; None if unknown.
        measures: The errors that a table shows, as pairs of a measure (see `error`) and a title. By
            default the balanced error, and those of two classes or of the groups of classes.
        history: One row for each epoch, with the training `loss` and the balanced `error` in
            percent on `split`; either may be missing.
        margins: Margins per class by split, as `diagnosis` holds them.
        diagnosis: What `keras_ldam.evaluation.diagnose` tells about `split`; None if unknown.
        warnings: What keeps it or its margins from working, in sentences.
        demanded: Margins that the loss demands, shape `(num_classes,)`; None for a loss without.
        start_epoch: Epoch, from zero, at which a deferred rule came on; None without such a rule.
        published: Published errors in percent to show beside its own, by `(group, measure)`.
        settings: Hyper-parameters by name.
        facts: Other facts by name, such as hardware and versions.
    """

    title: str
    class_names: Sequence[str]
    errors: Mapping[str, Any]
    split: str = "test"
    seed: int | None = None
    group: str = ""
    counts: Sequence[int] | np.ndarray | None = None
    measures: Sequence[tuple[str, str]] = ()
    history: Sequence[Mapping[str, float]] = ()
    margins: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    diagnosis: Mapping[str, Any] | None = None
    warnings: Sequence[str] = ()
    demanded: np.ndarray | None = None
    start_epoch: int | None = None
    published: Mapping[tuple[str, str], float] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def per_class(self) -> np.ndarray:
        """The error of each class, float64 of shape `(num_classes,)`, NaN where it is unknown."""
        return np.asarray(self.errors["per_class_error"], dtype=np.float64)

    def error(self, measure: str) -> float | None:
        """Returns one of its errors in percent, or None if it is unknown.

        Args:
            measure: A key of `errors`, or `"class 1"` for the error of class 1.
        """
        error: float | None = (
            self.errors["per_class_error"][int(measure.removeprefix("class "))]
            if measure.startswith("class ")
            else self.errors.get(measure)
        )
        return error
