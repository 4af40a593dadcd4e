"""From scores to probabilities."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ldam.counts import check_range


@keras.saving.register_keras_serializable(package="keras_ldam")
class ScaledSoftmax(keras.layers.Layer):
    """Probabilities of scores: p_j = exp(s z_j) / Σ_k exp(s z_k).

    It computes in float32 under every precision policy.

    Args:
        scale: s > 0, that of the loss: 30 by default for `LDAM`, 1 for logits.
        **kwargs: `name` and so on, as for every Keras layer.

    Call arguments:
        inputs: Scores z, `(…, num_classes)`.

    Returns:
        float32 tensor of the same shape, which sums to 1 over the last axis.

    Raises:
        ValueError: if `scale` is not a number above 0.

    Example:

    >>> import numpy as np
    >>> p = ScaledSoftmax(30)(np.array([[0.42, 0.18]]))
    >>> round(float(p[0, 0]), 4)
    0.9993
    """

    def __init__(self, scale: float = 1.0, **kwargs: Any):
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        check_range("scale", scale, 0, 1e6, open_low=True)
        self.scale: float = float(scale)
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        """Returns the probabilities."""
        return ops.softmax(self.scale * ops.cast(inputs, "float32"), axis=-1)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape unchanged."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal layer."""
        return {**super().get_config(), "scale": self.scale}
