"""Vector scaling: logits with a factor and an offset for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ldam import counts as class_counts
from keras_ldam.labels import check_classes, prepare
from keras_ldam.losses.base import of_answers, softmax_cross_entropy
from keras_ldam.losses.logit_adjusted import LogitAdjusted, logit_offsets


@keras.saving.register_keras_serializable(package="keras_ldam")
def vector_scaling(
    y_true: Any,
    y_pred: Any,
    counts: Sequence[int] | Mapping[int, int] | np.ndarray,
    *,
    gamma: float = 0.3,
    tau: float = 1.0,
    scale: float = 1.0,
) -> Any:
    """Cross-entropy of logits that are divided by class and then adjusted.

    ℓ = cross-entropy of s z_j / Δ_j + τ log π_j,  Δ_j = (n_max / n_j)^γ,  π_j = n_j / Σ_k n_k

    Args:
        y_true: Labels: integers of shape `(…)` or `(…, 1)`, or one-hot or soft `(…, num_classes)`.
        y_pred: Scores z, shape `(…, num_classes)`, or `(…, 1)` for two classes; see
            `VectorScaling`.
        counts: Training examples per class n_j, shape `(num_classes,)`.
        gamma: γ, the exponent of the divisors, in [0, 1]; 0 is `logit_adjusted`.
        tau: τ ≥ 0, the strength of the adjustment; 0 is the loss CDT.
        scale: s > 0; 1 for logits, some 15 to 30 for cosines.

    Returns:
        float32 tensor of shape `(…)`.

    Raises:
        ValueError: if shapes do not fit, and for `gamma`, `tau` or `scale` out of range.

    References:
        Kini et al., 2021; see `VectorScaling`.
    """
    class_counts.check_range("scale", scale, 0, 1e6, open_low=True)
    class_counts.check_range("gamma", gamma, 0, 1)
    one_score = tuple(ops.convert_to_tensor(y_pred).shape)[-1:] == (1,)
    return _scaled(y_true, y_pred, counts, gamma, tau, scale, one_score=one_score)


def _scaled(
    y_true: Any, y_pred: Any, counts: Any, gamma: float, tau: float, scale: float, *, one_score: Any
) -> Any:
    labels, sparse, scores = prepare(y_true, y_pred)
    counts = class_counts.check_counts(counts, multi_label=True)
    check_classes("vector_scaling", scores if counts.ndim == 1 else scores[..., 0], len(counts))
    divisors = ops.convert_to_tensor(
        (counts.max(axis=-1, keepdims=True) / counts) ** gamma, "float32"
    )
    offsets = ops.convert_to_tensor(logit_offsets(counts, tau))
    if one_score or counts.ndim == 2:
        # By the label's divisor: those of both classes together would only be a temperature.
        z = scale * (scores[..., 1] - scores[..., 0])
        no, yes = (z / divisors[..., j] + (offsets[..., 1] - offsets[..., 0]) for j in (0, 1))
        return of_answers(ops.softplus(-yes), ops.softplus(no), labels, sparse)
    logits = scale * scores / divisors + offsets
    return softmax_cross_entropy(labels, sparse, logits)


@keras.saving.register_keras_serializable(package="keras_ldam")
class VectorScaling(LogitAdjusted):
    """Vector-scaling (VS) loss: logit adjustment, and a divisor of the logits for each class.

    ℓ = cross-entropy of s z_j / Δ_j + τ log π_j,  Δ_j = (n_max / n_j)^γ,  π_j = n_j / Σ_k n_k

    where z are scores and n_j counts the training examples of class j. The offsets τ log π matter
    while training examples are still wrong. Where all are right, they no longer move the
    boundaries; the divisors do, since the score of a rare class must grow Δ_j times as large.

    γ = 0 is `LogitAdjusted`. τ = 0 is CDT, class-dependent temperatures (Ye et al., 2020); at the
    start of training it alone favors the frequent classes, which the offsets make up for.

    A single score z of two classes, or of one label among several, has the divisor of the label:
    ℓ = log(1 + exp(-(s z / Δ_1 + τ log(π_1 / π_0)))) for class 1, and so for class 0 with -z, Δ_0
    and π_0 / π_1.

    The scores are used as they are, without divisors and offsets. With γ above 0 they are not the
    logits of any class frequencies, so `softmax(s z)` ranks classes and is no probability before
    it has been calibrated.

    Args:
        counts: Training examples per class n_j, shape `(num_classes,)`, or per label and side,
            `(num_labels, 2)`; see `ClassWeightedLoss`.
        gamma: γ, the exponent of the divisors, in [0, 1].
        tau: τ ≥ 0, the strength of the adjustment, without unit.
        scale: s > 0, factor of the scores: 1 for logits; for cosines some 15 to 30. See
            `LogitAdjusted`.
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
        ValueError: for counts that are not whole numbers ≥ 1 or do not fit `y_pred`, and for
            `gamma`, `tau` or `scale` out of range.

    Example:

    >>> loss = VectorScaling([80, 5], gamma=0.5, tau=0.0)  # divisors 1 and 4
    >>> float(loss([1], [[0.0, 4.0]]))  # -log of the softmax of 0 and 1
    0.31326...

    References:
        Kini et al., 2021, "Label-Imbalanced and Group-Sensitive Classification under
        Overparameterization", whose Δ_j is 1/Δ_j here, as in the official code. γ = 0.3 and τ = 1
        are that code's defaults. There weights ω of the classes are a third part, here
        `class_weights`. Ye et al., 2020, "Identifying and Compensating for Feature Deviation in
        Imbalanced Deep Learning", for CDT.
    """

    def __init__(
        self,
        counts: Sequence[int] | Mapping[int, int] | np.ndarray,
        *,
        gamma: float = 0.3,
        tau: float = 1.0,
        scale: float = 1.0,
        class_weights: Sequence[float] | Mapping[int, float] | np.ndarray | None = None,
        reduction: str | None = "mean_with_sample_weight",
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            counts,
            tau=tau,
            scale=scale,
            class_weights=class_weights,
            reduction=reduction,
            name=name,
            **kwargs,
        )
        class_counts.check_range("gamma", gamma, 0, 1)
        self.gamma = float(gamma)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns one value per example."""
        return _scaled(
            y_true,
            y_pred,
            self.counts,
            self.gamma,
            self.tau,
            self.scale,
            one_score=self._one_score,
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal loss."""
        return {**super().get_config(), "gamma": self.gamma}
