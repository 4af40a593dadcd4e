"""Mean average precision over labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ldam import counts as class_counts
from keras_ldam.labels import as_index, check_classes, check_target, class_of, present, weigh
from keras_ldam.metrics.sums import ClassSums, mean_over, ratio


@keras.saving.register_keras_serializable(package="keras_ldam")
class MeanAveragePrecision(keras.metrics.Metric):
    """Average precision of each label, its mean, and that of labels with many and few positives.

    AP = Σ_t (R_t - R_{t-1}) P_t over thresholds t from the highest score down, with precision P
    and recall R. It depends on the order of the scores alone, and a guess at random has the share
    of positives.

    One metric whose result is a dictionary; `fit` and `evaluate` flatten it into their logs:

    * `mean_average_precision`: the mean over labels.
    * `many_average_precision`, `medium_average_precision`, `few_average_precision`: the mean over
      the labels of each group by training positives (see `shot_groups`).
    * `average_precision_0`, …: of each label, with `per_label=True`.

    All are fractions in [0, 1]. A label without a positive so far has NaN and is left out of the
    means; NaN among a label's scores makes its own NaN. With another `name` than the default the
    keys begin with it.

    A stream of batches keeps no list of scores. They are gathered in bins of z / (1 + |z|), whose
    width is 2 / `bins`, and scores in one bin count as tied: the result is exactly that of scores
    rounded to bins. For cosines a bin is 0.001 to 0.004 wide. For the exact value of the scores of
    `model.predict` take `sklearn.metrics.average_precision_score`.

    Args:
        counts: Negatives and positives of each label, shape `(num_labels, 2)`, as of
            `keras_ldam.count(…, multi_label=True)`; or `(2,)` for a single score.
        per_label: Whether the result holds the average precision of each label too.
        bins: Number of bins, for each label.
        ignore_class: Value of unknown answers, which count nowhere, such as -1.
        axis: Axis of the labels in `y_pred`.
        name: Name of the metric.
        **kwargs: `dtype`.

    Raises:
        ValueError: if an argument is not as described, or labels and scores do not fit.

    Example:

    >>> metric = MeanAveragePrecision([[90, 10], [50, 50]])
    >>> metric.update_state([[1, 1], [0, 0], [1, 0]], [[0.9, 0.3], [0.5, 0.6], [0.2, 0.1]])
    >>> {name: round(float(value), 3) for name, value in metric.result().items()}
    {'mean_average_precision': 0.667, 'medium_average_precision': 0.5, \
'few_average_precision': 0.833}
    """

    def __init__(
        self,
        counts: Sequence[Sequence[int]] | Sequence[int] | np.ndarray,
        *,
        per_label: bool = False,
        bins: int = 2000,
        ignore_class: int | None = None,
        axis: int = -1,
        name: str = "mean_average_precision",
        **kwargs: Any,
    ):
        kwargs.setdefault("dtype", "float32")  # Whatever floatx is: it counts.
        super().__init__(name=name, **kwargs)
        given: Any = counts
        self.counts = class_counts.check_counts(given, multi_label=True)
        if self.counts.shape[-1] != 2:
            raise ValueError(
                "`counts` must be negatives and positives, `(num_labels, 2)`, or `(2,)` for one "
                f"score. Received: shape {self.counts.shape}"
            )
        class_counts.check_whole("bins", bins, 2)
        class_counts.check_flag("per_label", per_label)
        self.ignore_class, self.axis = check_target(ignore_class, axis)
        self.per_label, self.bins = bool(per_label), int(bins)
        self._labels = len(self.counts) if self.counts.ndim == 2 else 1
        self._sums = ClassSums(self, 2 * self._labels * self.bins, "sums")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch.

        Args:
            y_true: Answers, 0 or 1, `(…, num_labels)`.
            y_pred: Scores, `(…, num_labels)`.
            sample_weight: Optional weights per example, `(…)`, or per example and label.

        Raises:
            ValueError: if shapes do not fit, and, outside compiled code, for answers other than 0
                and 1; inside, such an answer is left out.
        """
        multi_label = self.counts.ndim == 2
        check_classes(self.name, y_pred, len(self.counts), axis=self.axis, multi_label=multi_label)
        y_true, y_pred = present(
            y_true,
            y_pred,
            multi_label=multi_label,
            ignore_class=self.ignore_class,
            axis=self.axis,
        )
        answers = class_of(y_true, y_pred)
        weights = weigh(ops.ones_like(answers, dtype="float32"), y_pred, sample_weight)
        pairs = ops.cast(ops.convert_to_tensor(y_pred), "float32")
        scores = pairs[..., 1] - pairs[..., 0]
        known = ops.logical_or(scores == scores, weights == 0)
        scores = ops.where(scores == scores, scores, 0.0)
        weights = ops.where(answers >= 0, ops.where(known, weights, float("nan")), 0.0)
        squashed = scores / (1.0 + ops.abs(scores))
        squashed = ops.where(squashed == squashed, squashed, ops.sign(scores))  # Infinity.
        place = ops.floor((squashed + 1.0) * (self.bins / 2))
        place = ops.cast(ops.clip(place, 0, self.bins - 1), "int32")
        side = as_index(answers, 2)
        if multi_label:
            side = side + 2 * ops.arange(self._labels, dtype="int32")
        place = ops.reshape(side * self.bins + place, (-1,))
        self._sums.add(ops.reshape(weights, (-1,)), place)

    def result(self) -> dict[str, Any]:
        """Returns the average precisions so far, by name."""
        sums = ops.reshape(self._sums.value(), (self._labels, 2, self.bins))
        above = ops.cumsum(ops.flip(sums, axis=-1), axis=-1)
        positives, found = ops.flip(sums, axis=-1)[:, 1], above[:, 1]
        precision = ops.divide_no_nan(found, above[:, 0] + found)
        total = ops.sum(positives, axis=-1)
        each = ratio(ops.sum(positives * precision, axis=-1), total)
        groups = {"mean": np.arange(self._labels)}
        if self.counts.ndim == 2:
            groups |= class_counts.shot_groups(self.counts)
        result = {}
        for group, labels in groups.items():
            if len(labels):
                chosen = ops.take(each, ops.convert_to_tensor(labels, "int32"), axis=0)
                seen = ops.take(total, ops.convert_to_tensor(labels, "int32"), axis=0) > 0
                mean = mean_over(chosen, ops.cast(seen, "float32"))
                result[f"{group}_average_precision"] = mean
        if self.per_label:
            result.update({f"average_precision_{j}": each[j] for j in range(self._labels)})
        prefix = "" if self.name == "mean_average_precision" else f"{self.name}_"
        return {prefix + key: value for key, value in result.items()}

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal metric."""
        return {
            **super().get_config(),
            "counts": self.counts.tolist(),
            "per_label": self.per_label,
            "bins": self.bins,
            "ignore_class": self.ignore_class,
            "axis": self.axis,
        }
