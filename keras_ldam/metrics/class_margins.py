"""The margins that a model has reached, class by class."""

from __future__ import annotations

import keras
from keras import ops

from keras_ldam import counts as class_counts
from keras_ldam.labels import class_of, weigh


def example_margins(y_true, y_pred):
    """The margin of each example, γ(x, y) = z_y - max_{j≠y} z_j.

    Positive where the example is right, and then how far from being wrong, in the units of the
    scores: of cosines it is from -2 to 2. Nothing is subtracted for the loss's own margins Δ, so
    that a training with LDAM has done its work for an example where γ ≥ Δ_y.

    Args:
        y_true: Labels: integers of shape `[…]` or `[…, 1]`, or one-hot `[…, K]`.
        y_pred: Scores z, shape `[…, K]`, K ≥ 2.

    Returns:
        float32 tensor of shape `[…]`.

    Raises:
        ValueError: if the shapes do not fit together, or, outside compiled code, for a label that
            is no class.

    Example:

    >>> example_margins([0, 1], [[0.75, 0.25], [0.75, 0.25]]).numpy().tolist()
    [0.5, -0.5]

    References:
        Cao et al., 2019, equation 3.
    """
    scores = ops.cast(ops.convert_to_tensor(y_pred), "float32")
    num_classes = scores.shape[-1] if len(scores.shape) else None
    if num_classes is None or num_classes < 2:
        raise ValueError(
            "a margin needs a score for each of at least two classes; received y_pred of shape "
            f"{tuple(scores.shape)}."
        )
    labels = ops.expand_dims(class_of(y_true, scores), -1)
    own = ops.take_along_axis(scores, labels, axis=-1)
    is_label = labels == ops.arange(num_classes, dtype="int32")
    rivals = ops.where(is_label, -float("inf"), scores)
    return ops.squeeze(own, -1) - ops.max(rivals, axis=-1)


def _smallest_over_replicas(values):
    """The smallest of each entry over the replicas of a strategy, which can sum and not compare."""
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
        bins: Bins of the histogram, for each class.
        per_class: Whether the result holds the margins of each class too.
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
        name: str = "class_margins",
        **kwargs,
    ):
        kwargs.setdefault("dtype", "float32")
        super().__init__(name=name, **kwargs)
        if num_classes != int(num_classes) or num_classes < 2:
            raise ValueError(
                f"num_classes must be a whole number of at least 2; received {num_classes!r}."
            )
        class_counts.check_range("quantile", quantile, 0, 1)
        if not low < high:
            raise ValueError(f"low must be below high; received low={low!r}, high={high!r}.")
        if bins != int(bins) or bins < 1:
            raise ValueError(f"bins must be a whole number of at least 1; received {bins!r}.")
        self.num_classes, self.quantile, self.per_class = int(num_classes), quantile, per_class
        self.low, self.high, self.bins = float(low), float(high), int(bins)
        shape = (self.num_classes,)
        self.smallest = self.add_variable(
            shape,
            initializer=keras.initializers.Constant(float("inf")),
            # Each replica has that of all, and Keras would sum them.
            aggregation="only_first_replica",
            name="smallest",
        )
        self.sums = self.add_variable(shape, initializer="zeros", name="sums")
        self.histogram = self.add_variable(
            (self.num_classes * self.bins,), initializer="zeros", name="histogram"
        )

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Adds a batch; what has weight 0 or is masked is left out, other weights count as 1.

        In `fit` on Keras' JAX backend the mask is lost to every metric.
        """
        y_pred = ops.convert_to_tensor(y_pred)
        if y_pred.shape[-1] != self.num_classes:
            raise ValueError(
                f"{self.name}: num_classes={self.num_classes}, but y_pred has shape "
                f"{tuple(y_pred.shape)}."
            )
        margins = ops.reshape(example_margins(y_true, y_pred), (-1,))
        labels = class_of(y_true, y_pred)
        weights = weigh(ops.ones_like(labels, dtype="float32"), y_pred, sample_weight)
        labels = ops.reshape(labels, (-1,))
        counted = ops.cast(ops.reshape(weights, (-1,)) > 0, "float32")
        is_label = ops.expand_dims(labels, 0) == ops.expand_dims(
            ops.arange(self.num_classes, dtype="int32"), 1
        )
        is_label = ops.logical_and(is_label, ops.expand_dims(counted > 0, 0))
        smallest = ops.min(ops.where(is_label, margins, float("inf")), axis=1)
        smallest = ops.minimum(self.smallest, _smallest_over_replicas(smallest))
        self.smallest.assign(smallest)
        self.sums.assign(self.sums + ops.segment_sum(margins * counted, labels, self.num_classes))
        place = (margins - self.low) * (self.bins / (self.high - self.low))
        place = ops.cast(ops.clip(ops.floor(place), 0, self.bins - 1), "int32")
        self.histogram.assign(
            self.histogram
            + ops.segment_sum(counted, labels * self.bins + place, self.num_classes * self.bins)
        )

    def reset_state(self):
        super().reset_state()  # Sets everything to zero, which no smallest margin starts from.
        self.smallest.assign(ops.full(self.smallest.shape, float("inf"), self.dtype))

    def result(self):
        histogram = ops.reshape(self.histogram, (self.num_classes, self.bins))
        totals = ops.sum(histogram, axis=1)
        seen = totals > 0
        until = ops.cumsum(histogram, axis=1)
        # Never nothing, or the quantile 0 would be the end of the histogram.
        wanted = ops.expand_dims(ops.maximum(self.quantile * totals, 1e-6), 1)
        # The first bin by whose end the wanted share has been passed; the place inside it by a
        # straight line.
        index = ops.sum(ops.cast(until < wanted, "int32"), axis=1, keepdims=True)
        index = ops.minimum(index, self.bins - 1)
        inside = ops.take_along_axis(histogram, index, axis=1)
        before = ops.take_along_axis(until, index, axis=1) - inside
        part = ops.divide_no_nan(wanted - before, inside)
        width = (self.high - self.low) / self.bins
        quantiles = self.low + width * (ops.cast(index, self.dtype) + part)[:, 0]
        nothing, any_seen = float("nan"), ops.any(seen)
        means = {
            "margin_mean": (ops.sum(self.sums), ops.sum(totals)),
            "margin_quantile": (
                ops.sum(ops.where(seen, quantiles, 0.0)),
                ops.sum(ops.cast(seen, self.dtype)),
            ),
        }
        result = {"margin_min": ops.where(any_seen, ops.min(self.smallest), nothing)}
        for name, (part, whole) in means.items():
            result[name] = ops.where(any_seen, ops.divide_no_nan(part, whole), nothing)
        if self.per_class:
            for j in range(self.num_classes):
                result[f"margin_min_{j}"] = ops.where(seen[j], self.smallest[j], nothing)
                result[f"margin_quantile_{j}"] = ops.where(seen[j], quantiles[j], nothing)
        prefix = "" if self.name == "class_margins" else f"{self.name}_"
        return {prefix + key: value for key, value in result.items()}

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "quantile": self.quantile,
            "low": self.low,
            "high": self.high,
            "bins": self.bins,
            "per_class": self.per_class,
        }
