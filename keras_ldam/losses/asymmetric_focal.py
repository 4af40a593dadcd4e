"""The asymmetric focal loss of several labels: easy negatives count less than easy positives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ldam import counts as class_counts
from keras_ldam.labels import prepare, present
from keras_ldam.losses.base import ClassWeightedLoss, of_answers


@keras.saving.register_keras_serializable(package="keras_ldam")
def asymmetric_focal(
    y_true: Any,
    y_pred: Any,
    *,
    gamma_positive: float = 0.0,
    gamma_negative: float = 4.0,
    shift: float = 0.05,
) -> Any:
    """Asymmetric focal loss, one value per example and label.

    ℓ = -(1-p)^γ⁺ log p for a positive, -p_m^γ⁻ log(1-p_m) for a negative, p_m = max(p - m, 0)

    Args:
        y_true: Answers, 0 or 1, of the shape of `y_pred`; a share between them mixes both values.
        y_pred: Scores z (logits), shape `(…, num_labels)`; p = sigmoid(z).
        gamma_positive: γ⁺ ≥ 0, the focus for positives.
        gamma_negative: γ⁻ ≥ 0, the focus for negatives.
        shift: m in [0, 0.999]: negatives of a probability below it count nothing.

    Returns:
        float32 tensor of the shape of `y_pred`.

    Raises:
        ValueError: if shapes do not fit, or for an argument out of range.

    Example:

    >>> float(asymmetric_focal([[1]], [[0.0]])[0, 0])  # log 2
    0.6931471...

    References:
        Ridnik et al., 2021; see `AsymmetricFocal`.
    """
    _check(gamma_positive, gamma_negative, shift)
    return _asymmetric(
        *present(y_true, y_pred, multi_label=True), gamma_positive, gamma_negative, shift
    )


@keras.saving.register_keras_serializable(package="keras_ldam")
class AsymmetricFocal(ClassWeightedLoss):
    """Asymmetric focal loss (ASL) of several labels, or of one score for two classes.

    ℓ = -(1-p)^γ⁺ log p for a positive, -p_m^γ⁻ log(1-p_m) for a negative, p_m = max(p - m, 0)

    with p = sigmoid(z). Of hundreds of labels an example has a few, so nearly all answers are easy
    negatives; they count less than with one focus for both sides. It does with the focus what
    class weights do with weights, and knows no label's frequency.

    Args:
        counts: Negatives and positives of each label, shape `(num_labels, 2)`, or `(2,)` for one
            score; `None` for no class weights.
        gamma_positive: γ⁺ ≥ 0, the focus for positives.
        gamma_negative: γ⁻ ≥ 0, the focus for negatives.
        shift: m in [0, 0.999]: negatives of a probability below it count nothing, which also
            discards examples that are labeled wrongly.
        class_weights: Initial class weights, of the shape of `counts`; ones by default.
        reduction: As in `keras.losses.Loss`; Σ w ℓ / Σ w by default. The official code sums.
        name: Name of the loss.
        **kwargs: `ignore_class` and `axis`; see `ClassWeightedLoss`.

    Call arguments:
        y_true: Answers, 0 or 1, `(…, num_labels)`.
        y_pred: Scores (logits), `(…, num_labels)`.
        sample_weight: Optional weights per example, or per example and label.

    Returns:
        Scalar, or one value per example and label with `reduction=None`.

    Raises:
        ValueError: for counts of other targets, or an argument out of range.

    Example:

    >>> loss = AsymmetricFocal(gamma_negative=0.0, shift=0.0)  # binary cross-entropy
    >>> float(loss([[1, 0]], [[0.0, 0.0]]))
    0.6931471...

    References:
        Ridnik et al., 2021, "Asymmetric Loss For Multi-Label Classification", equation 7, whose
        experiments on MS-COCO have γ⁺ = 0, γ⁻ = 4 and m = 0.05.
    """

    def __init__(
        self,
        counts: Sequence[Sequence[int]] | Sequence[int] | np.ndarray | None = None,
        *,
        gamma_positive: float = 0.0,
        gamma_negative: float = 4.0,
        shift: float = 0.05,
        class_weights: Sequence[float] | Mapping[int, float] | np.ndarray | None = None,
        reduction: str | None = "mean_with_sample_weight",
        name: str | None = None,
        **kwargs: Any,
    ):
        given: Any = counts
        super().__init__(
            given, class_weights=class_weights, reduction=reduction, name=name, **kwargs
        )
        _check(gamma_positive, gamma_negative, shift)
        if self.counts is not None and self.counts.shape[-1] != 2:
            raise ValueError(
                "`counts` must be negatives and positives, `(num_labels, 2)`, or `(2,)` for one "
                f"score. Received: shape {self.counts.shape}"
            )
        self.gamma_positive, self.gamma_negative = float(gamma_positive), float(gamma_negative)
        self.shift = float(shift)

    @property
    def multi_label(self) -> bool:
        """Whether the targets are labels that do not exclude each other."""
        return self.counts is None or super().multi_label

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns one value per example and label."""
        return _asymmetric(y_true, y_pred, self.gamma_positive, self.gamma_negative, self.shift)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal loss."""
        return {
            **super().get_config(),
            "gamma_positive": self.gamma_positive,
            "gamma_negative": self.gamma_negative,
            "shift": self.shift,
        }


def _asymmetric(
    y_true: Any, y_pred: Any, gamma_positive: float, gamma_negative: float, shift: float
) -> Any:
    """The loss of pairs of scores, as `present` makes them."""
    labels, sparse, pairs = prepare(y_true, y_pred)
    z = pairs[..., 1] - pairs[..., 0]
    yes = ops.softplus(-z) * _focus(ops.sigmoid(-z), gamma_positive)
    no = ops.softplus(z)
    if shift:
        no = -ops.log(ops.minimum(ops.sigmoid(-z) + shift, 1.0))
    no = no * _focus(ops.relu(ops.sigmoid(z) - shift), gamma_negative)
    return of_answers(yes, no, labels, sparse)


def _focus(miss: Any, gamma: float) -> Any:
    # The floor keeps the power's derivative finite, for γ < 1 too.
    return ops.maximum(miss, keras.config.epsilon()) ** gamma if gamma else 1.0


def _check(gamma_positive: float, gamma_negative: float, shift: float) -> None:
    class_counts.check_range("gamma_positive", gamma_positive, 0, np.inf)
    class_counts.check_range("gamma_negative", gamma_negative, 0, np.inf)
    class_counts.check_range("shift", shift, 0, 0.999)
