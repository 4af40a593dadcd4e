"""Metrics of Keras that need probabilities, on a model that gives scores."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ldam.counts import check_flag, check_range, check_whole
from keras_ldam.labels import as_index, check_target, class_of, present, weigh


@keras.saving.register_keras_serializable(package="keras_ldam")
class OfProbabilities(keras.metrics.Metric):
    """A metric that needs probabilities, inside `fit` of a model that gives scores.

    The scores z become softmax(s z) before the metric sees them. For one class the metric is that
    of the decision between the class and all others, as `AUC`, `Precision` and `Recall` expect it;
    without one it gets one-hot labels and all probabilities. A single score, for two classes,
    becomes sigmoid(s z), the probability of class 1, and so does each with `multi_label`.

    Args:
        metric: The metric, such as `keras.metrics.AUC()`.
        scale: s > 0, that of the loss: `loss.scale` for `LDAM`, 1 for logits.
        class_id: The class or label, from zero; `None` for all of them, or the only one.
        multi_label: Whether the scores are those of labels that do not exclude each other. The
            metric then gets zeros and ones, and the probabilities, of all examples and labels in
            one row, or of the label `class_id`.
        ignore_class: Integer label that counts nowhere, such as 255 for void pixels.
        axis: Axis of the classes in `y_pred`, and in one-hot labels.
        name: Name of the metric; that of `metric` by default.
        **kwargs: `dtype`.

    Raises:
        ValueError: if `metric` is no metric, `scale` is not a number above 0, or `class_id` is no
            class.

    Example:

    ```python
    loss = keras_ldam.LDAM(counts)
    rare = keras_ldam.OfProbabilities(keras.metrics.AUC(), scale=loss.scale, class_id=2)
    model.compile("sgd", loss, metrics=[rare])
    ```
    """

    def __init__(
        self,
        metric: keras.metrics.Metric,
        *,
        scale: float,
        class_id: int | None = None,
        multi_label: bool = False,
        ignore_class: int | None = None,
        axis: int = -1,
        name: str | None = None,
        **kwargs: Any,
    ):
        metric = keras.metrics.deserialize(metric) if isinstance(metric, dict) else metric
        if not isinstance(metric, keras.metrics.Metric):
            raise ValueError(f"`metric` must be a Keras metric. Received: {metric!r}")
        check_range("scale", scale, 0, 1e6, open_low=True)
        if class_id is not None:
            check_whole("class_id", class_id, 0)
        super().__init__(name=name or metric.name, **kwargs)
        self.metric, self.scale = metric, float(scale)
        self.class_id = None if class_id is None else int(class_id)
        check_flag("multi_label", multi_label)
        self.multi_label = bool(multi_label)
        self.ignore_class, self.axis = check_target(ignore_class, axis)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch.

        Args:
            y_true: Labels `(…)` or `(…, 1)`, or one-hot `(…, num_classes)`.
            y_pred: Scores `(…, num_classes)`, or one for two classes, `(…, 1)`.
            sample_weight: Optional weights, `(…)`.
        """
        shape = tuple(ops.convert_to_tensor(y_pred).shape)
        y_true, y_pred = present(
            y_true,
            y_pred,
            multi_label=self.multi_label,
            ignore_class=self.ignore_class,
            axis=self.axis,
        )
        labels = class_of(y_true, y_pred)
        single = self.multi_label or shape[self.axis] == 1
        num_classes = shape[self.axis] if self.multi_label else max(shape[self.axis], 2)
        if self.class_id is not None and self.class_id >= num_classes:
            raise ValueError(
                f"`class_id` must be a class in 0 … {num_classes - 1}. Received: {self.class_id}"
            )
        weights = weigh(ops.ones_like(labels, dtype="float32"), y_pred, sample_weight)
        weights = ops.where(labels >= 0, weights, 0.0)
        scores = ops.cast(ops.convert_to_tensor(y_pred), "float32")
        probabilities = ops.softmax(self.scale * scores, axis=-1)
        if self.multi_label:
            probabilities = probabilities[..., 1]
            if self.class_id is not None:
                labels, weights = labels[..., self.class_id], weights[..., self.class_id]
                probabilities = probabilities[..., self.class_id]
            given = labels == 1
        elif single or self.class_id is not None:
            class_id = 1 if self.class_id is None else self.class_id
            given, probabilities = labels == class_id, probabilities[..., class_id]
        else:
            given = ops.one_hot(as_index(labels, num_classes), num_classes)
        # Metrics such as the mean squared error average over the last axis.
        shape = (-1, num_classes if len(given.shape) > len(labels.shape) else 1)
        given = ops.cast(ops.reshape(given, shape), "float32")
        probabilities = ops.reshape(probabilities, shape)
        self.metric.update_state(given, probabilities, ops.reshape(weights, (-1,)))

    def result(self) -> Any:
        """Returns the result of the metric."""
        return self.metric.result()

    def reset_state(self) -> None:
        """Forgets all batches."""
        self.metric.reset_state()

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal metric."""
        return {
            **super().get_config(),
            "metric": keras.metrics.serialize(self.metric),
            "scale": self.scale,
            "class_id": self.class_id,
            "multi_label": self.multi_label,
            "ignore_class": self.ignore_class,
            "axis": self.axis,
        }
