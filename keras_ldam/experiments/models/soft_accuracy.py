"""The accuracy that is shown where labels are mixed."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_ldam")
def soft_accuracy(y_true: Any, y_pred: Any) -> Any:
    """The share that soft labels give to the predicted class, as a metric.

    Args:
        y_true: Soft labels, shape `(batch, num_classes)`.
        y_pred: Scores, of the same shape.

    Returns:
        A tensor of shape `(batch,)`.
    """
    predicted = ops.expand_dims(ops.argmax(y_pred, axis=-1), -1)
    return ops.take_along_axis(y_true, predicted, axis=-1)[..., 0]
