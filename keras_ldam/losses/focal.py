"""Focal loss: easy examples count less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ldam import counts as class_counts
from keras_ldam.labels import prepare, weigh
from keras_ldam.losses.base import ClassWeightedLoss, softmax_cross_entropy

FORMS = ("softmax", "sigmoid")


@keras.saving.register_keras_serializable(package="keras_ldam")
def focal(y_true: Any, y_pred: Any, *, gamma: float = 1.0, form: str = "softmax") -> Any:
    """Focal loss: cross-entropy, with easy examples counting less.

    Softmax form: ℓ = -Σ_j y_j (1-p_j)^γ log p_j with p the softmax of the scores, always taken
    from the unweighted cross-entropy. (The official LDAM code takes it from the weighted one, so
    that class weights change the focus; this does not.)

    Sigmoid form: Σ_k -(1-p_k)^γ log p_k over K separate yes-or-no decisions, where p_k is the
    probability given to the right answer for class k. Of a single score both forms are the same.

    Both forms are linear in soft labels, so the loss of a mixture of two labels, as of mixup, is
    the mixture of their losses.

    Args:
        y_true: Labels: integers of shape `(…)` or `(…, 1)`, or one-hot or soft
            `(…, num_classes)`; in the sigmoid form a row may have several labels, or none.
        y_pred: Scores z (logits), shape `(…, num_classes)`, or one for two classes, `(…, 1)`.
        gamma: γ ≥ 0, the focus; 0 gives cross-entropy.
        form: `"softmax"` or `"sigmoid"`.

    Returns:
        float32 tensor of shape `(…)`.

    Raises:
        ValueError: if shapes do not fit, for a negative `gamma` or an unknown `form`.

    References:
        Lin et al., 2017, "Focal Loss for Dense Object Detection"; the sigmoid form over K classes
        is that of Cui et al., 2019, whose numbers the paper's focal rows are.
    """
    _check_focus(gamma, form)
    # A single score is one decision: the softmax of the pair that it becomes.
    several = form == "sigmoid" and tuple(ops.convert_to_tensor(y_pred).shape)[-1:] != (1,)
    labels, sparse, scores = prepare(y_true, y_pred, several=several)
    if several:
        return ops.sum(_decisions(labels, sparse, scores, gamma), axis=-1)
    if sparse:
        return _modulated(softmax_cross_entropy(labels, sparse, scores), gamma)
    # A class without a share must not count where its probability is 0, and -log p is infinite,
    # nor send back 0 times an infinite slope.
    entropies = ops.where(labels > 0, -ops.log_softmax(scores, axis=-1), 0.0)
    return ops.sum(labels * _modulated(entropies, gamma), axis=-1)


@keras.saving.register_keras_serializable(package="keras_ldam")
class Focal(ClassWeightedLoss):
    """Focal loss with class weights.

    The rows Focal and CB Focal of the paper are `form="sigmoid"` with
    `reduction="sum_over_batch_size"`.

    In the sigmoid form integer labels name one class per example, whose weight holds for all of the
    example's decisions, as in Cui et al. A matrix of labels holds K decisions per example, of which
    each has the weight of its own class, whatever the answer: an example may have several labels,
    or none. With `counts` of `(num_labels, 2)` each side of a label has a weight, and the forms are
    the same.

    Args:
        counts: Training examples per class, shape `(num_classes,)`, or per label and side,
            `(num_labels, 2)`; `None` for no class weights. See `ClassWeightedLoss`.
        gamma: γ ≥ 0, the focus; 0 gives cross-entropy. 1 in the official LDAM code.
        form: `"softmax"`, or `"sigmoid"` for K yes-or-no decisions (see `focal`).
        class_weights: Initial class weights; ones by default.
        reduction: As in `ClassWeightedLoss`; Σ w ℓ / Σ w by default.
        name: Name of the loss.
        **kwargs: `ignore_class` and `axis`; see `ClassWeightedLoss`.

    Call arguments:
        y_true: Integers `(…)` or `(…, 1)`, or one-hot or soft labels `(…, num_classes)`.
        y_pred: Scores (logits), `(…, num_classes)`.
        sample_weight: Optional weights per example, `(…)`.

    Returns:
        Scalar, or one value per example with `reduction=None`.

    Raises:
        ValueError: for counts that are not whole numbers ≥ 1 or do not fit `y_pred`, a negative
            `gamma`, or an unknown `form`.

    Example:

    >>> loss = Focal([90, 10], gamma=0.0)
    >>> float(loss([0, 1], [[0.0, 0.0], [0.0, 0.0]]))
    0.6931471...
    """

    def __init__(
        self,
        counts: Sequence[int] | Mapping[int, int] | np.ndarray | None = None,
        *,
        gamma: float = 1.0,
        form: str = "softmax",
        class_weights: Sequence[float] | Mapping[int, float] | np.ndarray | None = None,
        reduction: str | None = "mean_with_sample_weight",
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            counts, class_weights=class_weights, reduction=reduction, name=name, **kwargs
        )
        _check_focus(gamma, form)
        self.gamma, self.form = float(gamma), form

    @property
    def _one_class(self) -> bool:
        """Whether classes exclude each other, those of a pair of scores included."""
        return self.form == "softmax" or self.multi_label or self._one_score

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns one value per example."""
        if self._one_class:
            return focal(y_true, y_pred, gamma=self.gamma)
        if self.counts is None:
            return focal(y_true, y_pred, gamma=self.gamma, form=self.form)
        labels, sparse, scores = prepare(y_true, y_pred, several=True)
        decisions = _decisions(labels, sparse, scores, self.gamma)
        return ops.sum(decisions if sparse else decisions * self._relative, axis=-1)

    def _weighed_labels(self, y_true: Any, y_pred: Any) -> Any:
        return super()._weighed_labels(y_true, y_pred) if self._one_class else y_true

    def _weights_of(self, y_true: Any, y_pred: Any, sample_weight: Any) -> tuple[Any, Any]:
        # In the sigmoid form with a matrix of labels, class weights belong to decisions, and the
        # examples weigh the same.
        if not self._one_class:
            labels, sparse, _ = prepare(y_true, y_pred, several=True)
            if not sparse:
                ones = ops.ones_like(labels[..., 0])
                return weigh(ones, y_pred, sample_weight), weigh(ones, y_pred)
        return super()._weights_of(y_true, y_pred, sample_weight)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal loss."""
        return {**super().get_config(), "gamma": self.gamma, "form": self.form}


def _decisions(labels: Any, sparse: bool, scores: Any, gamma: float) -> Any:
    """The loss of each yes-or-no decision, shape `(…, num_classes)`."""
    if sparse:
        labels = ops.one_hot(labels, scores.shape[-1], dtype="float32")
    yes, no = ops.softplus(-scores), ops.softplus(scores)
    return labels * _modulated(yes, gamma) + (1.0 - labels) * _modulated(no, gamma)


def _modulated(entropy: Any, gamma: float) -> Any:
    # (1-p)^γ · entropy with p = exp(-entropy). The floor keeps the power's derivative finite
    # where p = 1, for γ < 1 too; the product is zero there all the same.
    if gamma == 0:
        return entropy
    miss = ops.maximum(-ops.expm1(-entropy), keras.config.epsilon())
    return miss**gamma * entropy


def _check_focus(gamma: float, form: str) -> None:
    class_counts.check_range("gamma", gamma, 0, np.inf)
    if form not in FORMS:
        raise ValueError(f"Unknown form {form!r} of the focal loss; available: {', '.join(FORMS)}.")
