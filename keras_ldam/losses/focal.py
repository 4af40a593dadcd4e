"""Focal loss: easy examples count less."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from keras_ldam import counts as class_counts
from keras_ldam.labels import prepare
from keras_ldam.losses.base import ClassWeightedLoss, softmax_cross_entropy

FORMS = ("softmax", "sigmoid")


@keras.saving.register_keras_serializable(package="keras_ldam")
def focal(y_true, y_pred, gamma=1.0, form="softmax"):
    """Focal loss: cross-entropy, with easy examples counting less.

    Softmax form: ℓ = -(1-p)^γ log p with p the probability of the label, always taken from the
    unweighted cross-entropy. (The official LDAM code takes it from the weighted one, so that
    class weights change the focus; this does not.)

    Sigmoid form: Σ_k -(1-p_k)^γ log p_k over K separate yes-or-no decisions, where p_k is the
    probability given to the right answer for class k.

    Args:
        y_true: Labels: integers of shape `[…]` or `[…, 1]`, or one-hot or soft `[…, K]`.
        y_pred: Scores z (logits), shape `[…, K]`.
        gamma: γ ≥ 0, the focus; 0 gives cross-entropy.
        form: `"softmax"` or `"sigmoid"`.

    Returns:
        float32 tensor of shape `[…]`.

    Raises:
        ValueError: if shapes do not fit, for a negative `gamma` or an unknown `form`.

    References:
        Lin et al., 2017, "Focal Loss for Dense Object Detection"; the sigmoid form over K classes
        is that of Cui et al., 2019, whose numbers the paper's focal rows are.
    """
    _check_focus(gamma, form)
    labels, sparse, scores = prepare(y_true, y_pred)
    if form == "softmax":
        entropy = softmax_cross_entropy(labels, sparse, scores)
        return _modulated(entropy, gamma)
    if sparse:
        labels = ops.one_hot(labels, scores.shape[-1], dtype="float32")
    right = ops.softplus(-scores), ops.softplus(scores)
    return ops.sum(
        labels * _modulated(right[0], gamma) + (1.0 - labels) * _modulated(right[1], gamma),
        axis=-1,
    )


@keras.saving.register_keras_serializable(package="keras_ldam")
class Focal(ClassWeightedLoss):
    """Focal loss with class weights.

    The rows Focal and CB Focal are `form="sigmoid"` with `reduction="sum_over_batch_size"`.

    Args:
        counts: Training examples per class, shape `[num_classes]`; None for no class weights.
        gamma: γ ≥ 0, the focus; 0 gives cross-entropy. 1 in the official LDAM code.
        form: `"softmax"`, or `"sigmoid"` for K yes-or-no decisions (see `focal`).
        class_weights: First class weights; ones by default.
        reduction: As in `keras.losses.Loss`; Σ w ℓ / Σ w by default.
        name: Name of the loss.

    Call arguments:
        y_true: Integers `[…]` or `[…, 1]`, one-hot or soft labels `[…, K]`.
        y_pred: Scores (logits) `[…, K]`.
        sample_weight: Optional weights per example, `[…]`.

    Returns:
        Scalar, or one value for each example with `reduction=None`.

    Raises:
        ValueError: for bad counts, a negative `gamma` or an unknown `form`.

    Example:

    >>> loss = Focal(gamma=2.0)
    >>> float(loss([0], [[0.0, 0.0]]))  # log(2) / 4
    0.1732867...
    """

    def __init__(
        self,
        counts: Sequence[int] | np.ndarray | None = None,
        *,
        gamma: float = 1.0,
        form: str = "softmax",
        class_weights: Sequence[float] | np.ndarray | None = None,
        reduction: str | None = "mean_with_sample_weight",
        name: str | None = None,
    ):
        super().__init__(counts, class_weights=class_weights, reduction=reduction, name=name)
        _check_focus(gamma, form)
        self.gamma, self.form = float(gamma), form

    def call(self, y_true, y_pred):
        return focal(y_true, y_pred, self.gamma, self.form)

    def get_config(self):
        return {**super().get_config(), "gamma": self.gamma, "form": self.form}


def _check_focus(gamma, form):
    class_counts.check_range("gamma", gamma, 0, np.inf)
    if form not in FORMS:
        raise ValueError(f"unknown focal form {form!r}; known: {', '.join(FORMS)}.")


def _modulated(entropy, gamma):
    # (1-p)^γ · entropy with p = exp(-entropy). The floor keeps the power's derivative finite
    # where p = 1, for γ < 1 too; the product is zero there all the same.
    if gamma == 0:
        return entropy
    miss = ops.maximum(-ops.expm1(-entropy), keras.config.epsilon())
    return miss**gamma * entropy
