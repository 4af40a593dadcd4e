"""From scores to probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ldam.counts import check_range

ACTIVATIONS = ("softmax", "sigmoid")
_SMALLEST, _LARGEST = 1e-30, 1 - 2.0**-24
"""Where probabilities are cut before their logarithm is taken: float32 knows none nearer to 1."""


@keras.saving.register_keras_serializable(package="keras_ldam")
class Probabilities(keras.layers.Layer):
    """Probabilities of scores: the softmax or sigmoid of s z_j + b_j.

    `keras_ldam.adjust` and `keras_ldam.with_probabilities` end a model with it. It computes in
    float32 under every precision policy.

    Args:
        scale: s > 0. For a softmax of cosines it is that of the loss, divided by the temperature.
        offsets: b, one number per score. Defaults to zeros.
        activation: `"softmax"` over the last axis, or `"sigmoid"` of each score. A single score is
            that of two classes, and becomes a sigmoid in any case.
        applied: The activation that has already been applied to the inputs. Its inverse, the
            logarithm or the logit of a probability, then comes before all else, and gives the
            scores up to a constant. None: the inputs are scores.
        **kwargs: `name` and so on, as for every Keras layer.

    Call arguments:
        inputs: Scores z or, with `applied`, probabilities, `(…, num_scores)`.

    Returns:
        float32 tensor of the same shape.

    Raises:
        ValueError: if `scale` is not a number above 0, an offset is not finite, or an activation is
            unknown.

    Example:

    >>> import numpy as np
    >>> p = Probabilities(30)(np.array([[0.42, 0.18]]))
    >>> round(float(p[0, 0]), 4)
    0.9993
    """

    def __init__(
        self,
        scale: float = 1.0,
        *,
        offsets: Sequence[float] | np.ndarray | None = None,
        activation: str = "softmax",
        applied: str | None = None,
        **kwargs: Any,
    ):
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        check_range("scale", scale, 0, 1e6, open_low=True)
        if activation not in ACTIVATIONS or applied not in (None, *ACTIVATIONS):
            raise ValueError(
                f"`activation` and `applied` must be among {', '.join(ACTIVATIONS)}; `applied` may "
                f"be None. Received: activation={activation!r}, applied={applied!r}"
            )
        self.scale: float = float(scale)
        self.offsets: list[float] | None = None
        if offsets is not None:
            self.offsets = np.asarray(offsets, dtype=np.float64).tolist()
            if np.ndim(offsets) != 1 or not np.all(np.isfinite(offsets)):
                raise ValueError(
                    f"`offsets` must be finite numbers, one per score. Received: {offsets}"
                )
        self.activation, self.applied = activation, applied
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Takes a single score for that of two classes: its softmax would be 1 whatever it is."""
        if self.offsets is not None and len(self.offsets) != input_shape[-1]:
            raise ValueError(
                f"`offsets` must be {input_shape[-1]} numbers, one per score. Received: "
                f"{len(self.offsets)}"
            )
        if input_shape[-1] == 1:
            self.activation, self.applied = "sigmoid", self.applied and "sigmoid"

    def logits(self, inputs: Any) -> Any:
        """Returns s z_j + b_j, float32 of the shape of the inputs."""
        scores = ops.cast(inputs, "float32")
        if self.applied is not None:
            scores = ops.clip(scores, _SMALLEST, _LARGEST)
            rest = ops.log1p(-scores) if self.applied == "sigmoid" else 0.0
            scores = ops.log(scores) - rest
        logits = self.scale * scores
        if self.offsets is None:
            return logits
        return logits + ops.convert_to_tensor(self.offsets, "float32")

    def call(self, inputs: Any) -> Any:
        """Returns the probabilities."""
        logits = self.logits(inputs)
        if self.activation == "sigmoid":
            return ops.sigmoid(logits)
        return ops.softmax(logits, axis=-1)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape unchanged."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal layer."""
        return {
            **super().get_config(),
            "scale": self.scale,
            "offsets": self.offsets,
            "activation": self.activation,
            "applied": self.applied,
        }
