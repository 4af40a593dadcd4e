"""The margins that a model has reached, class by class."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ldam import counts as class_counts
from keras_ldam.labels import as_index, check_classes, check_target, class_of, present, weigh
from keras_ldam.metrics.sums import ClassSums, mean_over, ratio


def example_margins(y_true: Any, y_pred: Any) -> Any:
    """Returns the margin of each example, γ(x, y) = z_y - max_{j≠y} z_j.

    It is positive where the example is right, and tells how far it is from being wrong, in the
    units of the scores: from -2 to 2 for cosines. The loss's own margins Δ are not subtracted, so
    LDAM has reached its aim for an example where γ ≥ Δ_y.

    Args:
        y_true: Labels: integers of shape `(…)` or `(…, 1)`, or one-hot `(…, num_classes)`.
        y_pred: Scores z, shape `(…, num_classes)`, or one for two classes, `(…, 1)`, which is then
            the margin of class 1.

    Returns:
        float32 tensor of shape `(…)`; NaN where a score is NaN, or a row of labels is all zeros.

    Raises:
        ValueError: if the shapes do not fit together, or, outside compiled code, for a label that
            is no class.

    Example:

    >>> [float(margin) for margin in example_margins([0, 1], [[0.75, 0.25], [0.75, 0.25]])]
    [0.5, -0.5]

    References:
        Cao et al., 2019, equation 3.
    """
    y_true, y_pred = present(y_true, y_pred)
    scores = ops.cast(ops.convert_to_tensor(y_pred), "float32")
    num_classes = scores.shape[-1] if len(scores.shape) else None
    if num_classes is None:
        raise ValueError(
            "A margin needs a score for each class, on the last axis. Received: `y_pred` of shape "
            f"{tuple(scores.shape)}"
        )
    classes = class_of(y_true, scores)
    labels = ops.expand_dims(as_index(classes, num_classes), -1)
    own = ops.squeeze(ops.take_along_axis(scores, labels, axis=-1), -1)
    is_label = labels == ops.arange(num_classes, dtype="int32")
    rivals = ops.max(ops.where(is_label, -float("inf"), scores), axis=-1)
    # A maximum may step over NaN.
    known = ops.logical_and(classes >= 0, ops.all(scores == scores, axis=-1))
    return ops.where(known, own - rivals, float("nan"))


_MOST_BINS = 20_000_000
"""Each is 8 bytes, and 12 more while they change."""


def _smallest_over_replicas(values: Any) -> Any:
    """Returns the smallest of each entry over the replicas; a strategy sums, but cannot compare."""
    if keras.backend.backend() != "tensorflow":
        return values
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return values
    own = tf.range(context.num_replicas_in_sync) == context.replica_id_in_sync_group
    rows = tf.where(own[:, None], values[None, :], 0.0)
    return tf.reduce_min(context.all_reduce(tf.distribute.ReduceOp.SUM, rows), axis=0)


@keras.saving.register_keras_serializable(package="keras_ldam")
class ClassMargins(keras.metrics.Metric):
    """Smallest, mean and low-quantile margin of the examples, and of each class.

    One metric whose result is a dictionary; `fit` and `evaluate` flatten it into their logs:

    * `margin_min`, `margin_mean`: over all examples.
    * `margin_quantile`: the mean over classes of the classes' quantiles.
    * `margin_min_0`, `margin_quantile_0`, …: of each class, with `per_class=True`.

    With another `name` than the default the keys begin with it, as those of `ClassErrors` do. A
    class without an example so far is left out of the mean, and has NaN of its own; without any
    example all are NaN. Minimum and mean are exact. A stream of batches keeps no list of margins,
    so a quantile is read from a histogram, to within one of its bins' width.

    Args:
        num_classes: K, at least 2.
        quantile: Which low quantile, 0 to 1.
        low: Left end of the histogram; margins below it count as if they lay there.
        high: Right end. The defaults suit cosines; widen them for unbounded scores.
        bins: Bins of the histogram, for each class; at most 2·10⁷ / K, which is 20 for 10⁶ classes.
        per_class: Whether the result holds the margins of each class too.
        ignore_class: Integer label that counts nowhere, such as 255 for void pixels.
        axis: Axis of the classes in `y_pred`, and in one-hot labels.
        name: Name of the metric.
        **kwargs: `dtype`.

    Raises:
        ValueError: for an argument out of range, or labels and scores that do not fit.

    Example:

    >>> metric = ClassMargins(2, per_class=True)
    >>> metric.update_state([0, 0, 1], [[0.9, 0.1], [0.6, 0.4], [0.7, 0.2]])
    >>> {k: round(float(v), 1) for k, v in metric.result().items() if "min" in k}
    {'margin_min': -0.5, 'margin_min_0': 0.2, 'margin_min_1': -0.5}
    """

    def __init__(
        self,
        num_classes: int,
        *,
        quantile: float = 0.05,
        low: float = -2.0,
        high: float = 2.0,
        bins: int = 200,
        per_class: bool = False,
        ignore_class: int | None = None,
        axis: int = -1,
        name: str = "class_margins",
        **kwargs: Any,
    ):
        kwargs.setdefault("dtype", "float32")  # Whatever floatx is: it counts.
        super().__init__(name=name, **kwargs)
        class_counts.check_whole("num_classes", num_classes, 2)
        class_counts.check_range("quantile", quantile, 0, 1)
        if not low < high:
            raise ValueError(f"`low` must be below `high`. Received: low={low!r}, high={high!r}")
        class_counts.check_whole("bins", bins, 1)
        class_counts.check_flag("per_class", per_class)
        if num_classes * bins > _MOST_BINS:
            raise ValueError(
                f"`bins` may be at most {max(1, _MOST_BINS // int(num_classes))} for "
                f"{num_classes:,} classes, each of which has a histogram. Received: bins={bins}"
            )
        self.num_classes, self.quantile = int(num_classes), float(quantile)
        self.per_class = bool(per_class)
        self.ignore_class, self.axis = check_target(ignore_class, axis)
        self.low, self.high, self.bins = float(low), float(high), int(bins)
        shape = (self.num_classes,)
        self.smallest = self.add_variable(
            shape,
            initializer=keras.initializers.Constant(float("inf")),
            # Each replica has that of all, and Keras would sum them.
            aggregation="only_first_replica",
            name="smallest",
            dtype="float32",
        )
        self._sums = ClassSums(self, self.num_classes, "sums")
        self._histogram = ClassSums(self, self.num_classes * self.bins, "histogram")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch.

        What has weight 0, is masked, or has a row of labels that is all zeros, is left out; other
        weights count as 1. In `fit` on Keras' JAX backend the mask is lost to every metric.

        Args:
            y_true: Labels `(…)` or `(…, 1)`, or one-hot `(…, num_classes)`.
            y_pred: Scores `(…, num_classes)`, or one for two classes, `(…, 1)`.
            sample_weight: Optional weights, `(…)` or, for dense predictions, `(batch,)`.

        Raises:
            ValueError: if shapes do not fit, and, outside compiled code, for a label that is no
                class.
        """
        check_classes(self.name, y_pred, self.num_classes, axis=self.axis, given="num_classes")
        y_true, y_pred = present(y_true, y_pred, ignore_class=self.ignore_class, axis=self.axis)
        margins = ops.reshape(example_margins(y_true, y_pred), (-1,))
        labels = class_of(y_true, y_pred)
        weights = weigh(ops.ones_like(labels, dtype="float32"), y_pred, sample_weight)
        labels, weights = ops.reshape(labels, (-1,)), ops.reshape(weights, (-1,))
        counted = ops.logical_and(weights > 0, labels >= 0)
        labels = as_index(labels, self.num_classes)
        smallest = -ops.segment_max(
            ops.where(counted, -margins, -float("inf")), labels, self.num_classes
        )
        self.smallest.assign(
            ops.minimum(ops.convert_to_tensor(self.smallest), _smallest_over_replicas(smallest))
        )
        self._sums.add(ops.where(counted, margins, 0.0), labels)
        place = (margins - self.low) * (self.bins / (self.high - self.low))
        place = ops.clip(ops.floor(ops.where(margins == margins, place, 0.0)), 0, self.bins - 1)
        self._histogram.add(
            ops.cast(counted, "float32"), labels * self.bins + ops.cast(place, "int32")
        )

    def reset_state(self) -> None:
        """Forgets all batches."""
        super().reset_state()  # Sets everything to zero, which no smallest margin starts from.
        self.smallest.assign(ops.full(self.smallest.shape, float("inf"), "float32"))

    def result(self) -> dict[str, Any]:
        """Returns the margins so far, by name; NaN where a score was NaN."""
        histogram = ops.reshape(self._histogram.value(), (self.num_classes, self.bins))
        sums, smallest = self._sums.value(), ops.convert_to_tensor(self.smallest)
        totals = ops.sum(histogram, axis=1)
        seen = totals > 0
        until = ops.cumsum(histogram, axis=1)
        # Never nothing, or the quantile 0 would be the end of the histogram.
        wanted = ops.expand_dims(ops.maximum(self.quantile * totals, 1e-6), 1)
        # The first bin by whose end the wanted share has been passed; the place inside it by a
        # straight line.
        index = ops.sum(ops.cast(until < wanted, "int32"), axis=1, keepdims=True)
        index = as_index(index, self.bins)
        inside = ops.take_along_axis(histogram, index, axis=1)
        before = ops.take_along_axis(until, index, axis=1) - inside
        part = ops.divide_no_nan(wanted - before, inside)
        width = (self.high - self.low) / self.bins
        quantiles = self.low + width * (ops.cast(index, "float32") + part)[:, 0]
        # The sum of a class has kept what its histogram and its minimum cannot show.
        broken = sums != sums
        quantiles = ops.where(broken, float("nan"), quantiles)
        smallest = ops.where(broken, float("nan"), smallest)
        nothing, known = float("nan"), ops.logical_and(ops.any(seen), ops.all(sums == sums))
        result = {
            "margin_min": ops.where(known, ops.min(smallest), nothing),
            "margin_mean": ratio(ops.sum(sums), ops.sum(totals)),
            "margin_quantile": mean_over(quantiles, ops.cast(seen, "float32")),
        }
        if self.per_class:
            for j in range(self.num_classes):
                result[f"margin_min_{j}"] = ops.where(seen[j], smallest[j], nothing)
                result[f"margin_quantile_{j}"] = ops.where(seen[j], quantiles[j], nothing)
        prefix = "" if self.name == "class_margins" else f"{self.name}_"
        return {prefix + key: value for key, value in result.items()}

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal metric."""
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "quantile": self.quantile,
            "low": self.low,
            "high": self.high,
            "bins": self.bins,
            "per_class": self.per_class,
            "ignore_class": self.ignore_class,
            "axis": self.axis,
        }
