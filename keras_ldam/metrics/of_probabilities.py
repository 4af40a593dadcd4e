"""Metrics of Keras that need probabilities, on a model that gives scores."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ldam.counts import check_range
from keras_ldam.labels import as_index, class_of, weigh


@keras.saving.register_keras_serializable(package="keras_ldam")
class OfProbabilities(keras.metrics.Metric):
    """A metric that needs probabilities, inside `fit` of a model that gives scores.

    The scores z become softmax(s z) before the metric sees them. For one class the metric is that
    of the decision between the class and all others, as `AUC`, `Precision` and `Recall` expect it;
    without one it gets one-hot labels and all probabilities.

    Args:
        metric: The metric, such as `keras.metrics.AUC()`.
        scale: s > 0, that of the loss: `loss.scale` for `LDAM`, 1 for logits.
        class_id: The class, from zero; `None` for all of them.
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
        name: str | None = None,
        **kwargs: Any,
    ):
        metric = keras.metrics.deserialize(metric) if isinstance(metric, dict) else metric
        if not isinstance(metric, keras.metrics.Metric):
            raise ValueError(f"`metric` must be a Keras metric. Received: {metric!r}")
        check_range("scale", scale, 0, 1e6, open_low=True)
        if class_id is not None and (class_id != int(class_id) or class_id < 0):
            raise ValueError(
                f"`class_id` must be a whole number of at least 0. Received: {class_id!r}"
            )
        super().__init__(name=name or metric.name, **kwargs)
        self.metric, self.scale = metric, float(scale)
        self.class_id = None if class_id is None else int(class_id)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch.

        Args:
            y_true: Labels `(…)` or `(…, 1)`, or one-hot `(…, num_classes)`.
            y_pred: Scores `(…, num_classes)`.
            sample_weight: Optional weights, `(…)`.
        """
        scores = ops.cast(ops.convert_to_tensor(y_pred), "float32")
        num_classes = scores.shape[-1]
        if self.class_id is not None and self.class_id >= num_classes:
            raise ValueError(
                f"`class_id` must be a class in 0 … {num_classes - 1}. Received: {self.class_id}"
            )
        labels = class_of(y_true, y_pred)
        weights = weigh(ops.ones_like(labels, dtype="float32"), y_pred, sample_weight)
        weights = ops.reshape(ops.where(labels >= 0, weights, 0.0), (-1,))
        labels = ops.reshape(labels, (-1,))
        probabilities = ops.softmax(self.scale * ops.reshape(scores, (-1, num_classes)), axis=-1)
        if self.class_id is None:
            given = ops.one_hot(as_index(labels, num_classes), num_classes, dtype="float32")
        else:
            given = ops.cast(labels == self.class_id, "float32")
            probabilities = probabilities[:, self.class_id]
        self.metric.update_state(given, probabilities, weights)

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
        }
