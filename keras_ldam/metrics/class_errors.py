"""Metrics that look at every class, however rare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ldam import counts as class_counts
from keras_ldam.labels import check_classes, check_target, present
from keras_ldam.metrics.decisions import are_guesses, decisions, guessed_decisions
from keras_ldam.metrics.sums import ClassSums, mean_over, ratio
from keras_ldam.sharding import check_sharded

_GROUPS = ("many", "medium", "few")
_MOST_LOGS = 10_000


@keras.saving.register_keras_serializable(package="keras_ldam")
class ClassErrors(keras.metrics.Metric):
    """Top-1 error per class, balanced, and over classes with many, medium and few examples.

    One metric whose result is a dictionary; `fit` and `evaluate` flatten it into their logs:

    * `error`: wrong examples / examples.
    * `balanced_error`: mean of the errors of the classes, each class counting the same;
      `balanced_accuracy` = 1 - `balanced_error`.
    * `many_error`, `medium_error`, `few_error`: the mean over the classes of each group (see
      `shot_groups`), for the groups that have classes.
    * `error_0`, `error_1`, …: of each class, with `per_class=True`.

    All are fractions in [0, 1]. A class without an example so far is left out of the means, and
    has NaN for its own error; so has a group none of whose classes has been seen. No margin is
    taken off: an example is right if the score of its label is the best, and wrong if a score is
    NaN.

    A model that ends in a single score guesses class 1 where the score is above 0. With `counts` of
    labels that do not exclude each other, `(num_labels, 2)`, the error of a label is the mean of
    its two sides, the share of its positives that are missed and of its negatives that are taken
    for positives; groups are those of its positives. Probabilities of a sigmoid are all above 0:
    for a model that ends in one pass `threshold=0.5`.

    With another `name` than the default the keys begin with it, `NAME_error` and so on. Give names
    where a model has several, as for several outputs: Keras joins all metrics into one dictionary,
    where equal keys overwrite each other.

    Keras passes `sample_weight` of `fit` and `evaluate` on to `weighted_metrics`, not to `metrics`:
    where weights of 0 leave void pixels out, compile with `weighted_metrics=[ClassErrors(counts)]`.
    Callbacks that watch one of the keys need `mode="min"`, or `mode="max"` for an accuracy.

    Args:
        counts: Training examples per class, shape `(num_classes,)`, or per label and side,
            `(num_labels, 2)`.
        per_class: Whether the result holds the error of each class too, of at most 10,000 classes.
        ignore_class: Integer label that counts nowhere, such as 255 for void pixels.
        axis: Axis of the classes in `y_pred`, and in one-hot labels.
        threshold: A single score above it means class 1, as does a label's score that the label
            applies: 0 for scores, 0.5 for probabilities of a sigmoid.
        name: Name of the metric.
        **kwargs: `dtype`.

    Raises:
        ValueError: if `counts` are not whole numbers ≥ 1, or do not fit `y_pred`, and for
            `per_class` of more classes.

    Example:

    >>> metric = ClassErrors([90, 10], per_class=True)
    >>> metric.update_state([0, 0, 0, 1], [[1, 0], [1, 0], [0, 1], [1, 0]])
    >>> {name: round(float(value), 2) for name, value in metric.result().items()}
    {'error': 0.5, 'balanced_error': 0.67, 'balanced_accuracy': 0.33, 'medium_error': 0.33, \
'few_error': 1.0, 'error_0': 0.33, 'error_1': 1.0}
    """

    def __init__(
        self,
        counts: Sequence[int] | Mapping[int, int] | np.ndarray,
        *,
        per_class: bool = False,
        ignore_class: int | None = None,
        axis: int = -1,
        threshold: float = 0.0,
        name: str = "class_errors",
        **kwargs: Any,
    ):
        kwargs.setdefault("dtype", "float32")  # Whatever floatx is: it counts.
        super().__init__(name=name, **kwargs)
        self.counts = class_counts.check_counts(counts, multi_label=True)
        self.ignore_class, self.axis = check_target(ignore_class, axis)
        class_counts.check_range("threshold", threshold, -1e6, 1e6)
        self.threshold = float(threshold)
        check_sharded(len(self.counts) if self.counts.ndim == 1 else 2, "metric")
        class_counts.check_flag("per_class", per_class)
        if per_class and len(self.counts) > _MOST_LOGS:
            raise ValueError(
                f"`per_class` may be True for at most {_MOST_LOGS:,} classes, each of which is "
                "logged; keras_ldam.evaluation.errors_of_guesses returns the errors of more in an "
                f"array. Received: {len(self.counts):,} classes"
            )
        self.per_class = bool(per_class)
        # A variable: of a constant of 10⁷ classes compilers make others, and it lies on one device.
        self._group_of = self.add_variable(
            (len(self.counts),),
            initializer="zeros",
            # Each replica has that of all, and Keras would sum them.
            aggregation="only_first_replica",
            name="group",
            dtype="float32",
        )
        numbers = self._set_groups()
        self._groups = {name: i for i, name in enumerate(_GROUPS) if np.any(numbers == i)}
        self._total = ClassSums(self, self.counts.size, "total")
        self._wrong = ClassSums(self, self.counts.size, "wrong")

    def _set_groups(self) -> np.ndarray:
        groups = class_counts.shot_groups(self.counts)
        numbers = np.zeros(len(self.counts), "float32")
        for i, name in enumerate(_GROUPS):
            numbers[groups.pop(name)] = i
        self._group_of.assign(numbers)
        return numbers

    def reset_state(self) -> None:
        """Forgets all batches."""
        super().reset_state()  # Sets everything to zero, the groups of the classes too.
        self._set_groups()

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch.

        Steps that a mask leaves out and rows of labels that are all zeros count nothing, except
        that in `fit` on Keras' JAX backend the mask is lost to every metric.

        Args:
            y_true: Labels `(…)` or `(…, 1)`, or one-hot `(…, num_classes)`; for several labels
                zeros and ones `(…, num_labels)`.
            y_pred: Scores `(…, num_classes)`, or one for two classes, `(…, 1)`. For more classes
                than two, whole numbers `(…, 1)` are the predicted classes.
            sample_weight: Optional weights, `(…)` or, for dense predictions, `(batch,)`.

        Raises:
            ValueError: if shapes do not fit, and, outside compiled code, for a label that is no
                class; inside, such an example is left out.
        """
        multi_label, num_classes = self.counts.ndim == 2, self.counts.shape[-1]
        size, y_pred = len(self.counts), ops.convert_to_tensor(y_pred)
        if not multi_label and are_guesses(y_pred, size):
            found = guessed_decisions(y_true, y_pred, sample_weight, size, self.ignore_class)
            self._add(*found)
            return
        check_classes(self.name, y_pred, size, axis=self.axis, multi_label=multi_label)
        y_true, y_pred = present(
            y_true,
            y_pred,
            multi_label=multi_label,
            ignore_class=self.ignore_class,
            axis=self.axis,
            threshold=self.threshold,
        )
        labels, *rest = decisions(y_true, y_pred, sample_weight)
        sides: Any = 0
        if multi_label:  # Each side of each label is a class.
            sides = num_classes * (ops.arange(ops.shape(labels)[0], dtype="int32") % size)
        self._add(labels, *rest, sides=sides)

    def _add(
        self, labels: Any, guesses: Any, weights: Any, guessed: Any, *, sides: Any = 0
    ) -> None:
        wrong = weights - ops.where(labels == guesses, guessed, 0.0)
        labels = labels + sides
        self._total.add(weights, labels)
        self._wrong.add(wrong, labels)

    def result(self) -> dict[str, Any]:
        """Returns the errors so far, by name."""
        total, wrong = self._total.value(), self._wrong.value()
        seen = ops.cast(total > 0, "float32")
        errors = ops.divide_no_nan(wrong, total)
        if self.counts.ndim == 2:
            sides = ops.sum(ops.reshape(seen, self.counts.shape), axis=1)
            both = ops.sum(ops.reshape(errors, self.counts.shape), axis=1)
            errors, seen = ops.divide_no_nan(both, sides), ops.cast(sides > 0, "float32")

        balanced = mean_over(errors, seen)
        result = {
            "error": ratio(ops.sum(wrong), ops.sum(total)),
            "balanced_error": balanced,
            "balanced_accuracy": 1.0 - balanced,
        }
        for group, i in self._groups.items():
            of_group = ops.convert_to_tensor(self._group_of) == i
            result[f"{group}_error"] = mean_over(errors, seen * ops.cast(of_group, "float32"))
        if self.per_class:
            own = ops.where(seen > 0, errors, float("nan"))
            result.update({f"error_{j}": own[j] for j in range(len(self.counts))})
        prefix = "" if self.name == "class_errors" else f"{self.name}_"
        return {prefix + key: value for key, value in result.items()}

    def predicts_one_class(self) -> bool:
        """Whether all predictions so far are one class, though there were examples of others.

        Of several labels each must be, among those of which both sides were seen.
        """
        total, wrong = (
            ops.convert_to_numpy(sums.value()).reshape(-1, self.counts.shape[-1])
            for sums in (self._total, self._wrong)
        )
        several = (total > 0).sum(axis=1) > 1
        right = (total > 0) & (wrong < total)
        alone = (right.sum(axis=1) == 1) & ~(right & (wrong > 0)).any(axis=1)
        return bool(several.any() and alone[several].all())

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal metric."""
        return {
            **super().get_config(),
            "counts": self.counts.tolist(),
            "per_class": self.per_class,
            "ignore_class": self.ignore_class,
            "axis": self.axis,
            "threshold": self.threshold,
        }
