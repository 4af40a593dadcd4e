"""Logit adjustment as a loss; balanced softmax is its case τ = 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ldam import counts as class_counts
from keras_ldam.labels import check_classes, prepare
from keras_ldam.losses.base import ClassWeightedLoss, of_class, softmax_cross_entropy


@keras.saving.register_keras_serializable(package="keras_ldam")
def logit_adjusted(
    y_true: Any,
    y_pred: Any,
    counts: Sequence[int] | Mapping[int, int] | np.ndarray,
    *,
    tau: float = 1.0,
    scale: float = 1.0,
) -> Any:
    """Cross-entropy of logits to which the log of the class frequencies has been added.

    ℓ = -log [ exp(s z_y + τ log π_y) / Σ_j exp(s z_j + τ log π_j) ],  π_j = n_j / Σ_k n_k

    Args:
        y_true: Labels: integers of shape `(…)` or `(…, 1)`, or one-hot or soft `(…, num_classes)`.
        y_pred: Scores z, shape `(…, num_classes)`.
        counts: Training examples per class n_j, shape `(num_classes,)`.
        tau: τ ≥ 0, the strength of the adjustment; 1 is balanced softmax, 0 cross-entropy.
        scale: s > 0; 1 for logits, some 15 to 30 for cosines.

    Returns:
        float32 tensor of shape `(…)`.

    Raises:
        ValueError: if shapes do not fit, and for `tau` or `scale` out of range.

    Example:

    >>> float(logit_adjusted([1], [[0.0, 0.0]], [90, 10])[0])  # -log 0.1
    2.30258...

    References:
        Menon et al., 2021, "Long-Tail Learning via Logit Adjustment", equation 10; Ren et al.,
        2020, "Balanced Meta-Softmax for Long-Tailed Visual Recognition".
    """
    class_counts.check_range("scale", scale, 0, 1e6, open_low=True)
    labels, sparse, scores = prepare(y_true, y_pred)
    offsets = logit_offsets(counts, tau)
    check_classes("logit_adjusted", scores if offsets.ndim == 1 else scores[..., 0], len(offsets))
    logits = scale * scores + ops.convert_to_tensor(offsets)
    return softmax_cross_entropy(labels, sparse, logits)


@keras.saving.register_keras_serializable(package="keras_ldam")
class LogitAdjusted(ClassWeightedLoss):
    """Logit-adjusted cross-entropy: the class frequencies are in the loss, not in the scores.

    ℓ = -log [ exp(s z_y + τ log π_y) / Σ_j exp(s z_j + τ log π_j) ],  π_j = n_j / Σ_k n_k

    where z are scores and n_j counts the training examples of class j. The sum s z + τ log π
    explains the training data, so s z alone is what is left without their frequencies: with τ = 1
    the scores are for equally frequent classes, and the largest is the choice for the balanced
    error. Balanced softmax is τ = 1; τ = 0 is cross-entropy, and so are equal counts.

    It does with an offset what class weights do with weights, so take one of them: after `DRW` on
    top the rare classes count twice. `LDAM(counts, tau=…)` has margins and adjustment together.

    The loss sees scores and not the layer that they come from, so you say what they are: with
    logits, as of `Dense`, leave `scale` at 1; with cosines, as of `CosineDense`, pass the scale of
    the softmax. log π spans 4.6 nats at a ratio of 100 and cosines span 2, so without a scale no
    cosines can make up for it, and training diverges.

    Args:
        counts: Training examples per class n_j, shape `(num_classes,)`, or per label and side,
            `(num_labels, 2)`; see `ClassWeightedLoss`.
        tau: τ ≥ 0, the strength of the adjustment, without unit. 1 by theory for the balanced
            error; larger values favor the rare classes further.
        scale: s > 0, factor of the scores: 1 for logits; for cosines some 15 to 30.
        class_weights: Initial class weights; ones by default.
        reduction: As in `ClassWeightedLoss`; Σ w ℓ / Σ w by default.
        name: Name of the loss.
        **kwargs: `ignore_class` and `axis`; see `ClassWeightedLoss`.

    Call arguments:
        y_true: Integers `(…)` or `(…, 1)`, one-hot or soft labels `(…, num_classes)`.
        y_pred: Scores, `(…, num_classes)`.
        sample_weight: Optional weights per example, `(…)`.

    Returns:
        Scalar, or one value per example with `reduction=None`.

    Raises:
        ValueError: for counts that are not whole numbers ≥ 1 or do not fit `y_pred`, and for `tau`
            or `scale` out of range.

    Example:

    >>> loss = LogitAdjusted([90, 10])
    >>> float(loss([1], [[0.0, 0.0]]))  # -log 0.1: the frequencies alone
    2.30258...

    References:
        Menon et al., 2021, "Long-Tail Learning via Logit Adjustment", equation 10; Ren et al.,
        2020, "Balanced Meta-Softmax for Long-Tailed Visual Recognition", of which this
        is the loss, without the meta-learned sampler.
    """

    def __init__(
        self,
        counts: Sequence[int] | Mapping[int, int] | np.ndarray,
        *,
        tau: float = 1.0,
        scale: float = 1.0,
        class_weights: Sequence[float] | Mapping[int, float] | np.ndarray | None = None,
        reduction: str | None = "mean_with_sample_weight",
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            class_counts.check_counts(counts, multi_label=True),
            class_weights=class_weights,
            reduction=reduction,
            name=name,
            **kwargs,
        )
        class_counts.check_range("tau", tau, 0, np.inf)
        class_counts.check_range("scale", scale, 0, 1e6, open_low=True)
        self.tau, self.scale = float(tau), float(scale)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns one value per example."""
        return logit_adjusted(y_true, y_pred, self.counts, tau=self.tau, scale=self.scale)

    def of_label_and_rest(self, labels: Any, chunks: Any, features: Any) -> Any:
        """Returns one value per example without the scores of all classes."""
        offsets = ops.convert_to_tensor(logit_offsets(self.counts, self.tau))
        own, rest = chunks.label_and_rest(features, labels, scale=self.scale, offsets=offsets)
        return ops.softplus(rest - self.scale * own - of_class(offsets, labels, True))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal loss."""
        return {**super().get_config(), "tau": self.tau, "scale": self.scale}


def logit_offsets(counts: Sequence[int] | Mapping[int, int] | np.ndarray, tau: float) -> np.ndarray:
    """What logit adjustment adds to the logits, τ log π_j, float32 of shape `(num_classes,)`."""
    class_counts.check_range("tau", tau, 0, np.inf)
    counts = class_counts.check_counts(counts, multi_label=True)
    return (tau * np.log(counts / counts.sum(axis=-1, keepdims=True))).astype(np.float32)
