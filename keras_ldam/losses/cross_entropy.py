"""Softmax cross-entropy."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ldam.labels import prepare
from keras_ldam.losses.base import ClassWeightedLoss, softmax_cross_entropy


@keras.saving.register_keras_serializable(package="keras_ldam")
def cross_entropy(y_true: Any, y_pred: Any) -> Any:
    """Softmax cross-entropy, ℓ = -z_y + log Σ_j exp(z_j), for each example.

    Args:
        y_true: Labels: integers of shape `(…)` or `(…, 1)`, or one-hot or soft `(…, num_classes)`.
        y_pred: Scores z (logits), shape `(…, num_classes)`.

    Returns:
        float32 tensor of shape `(…)`.

    Example:

    >>> float(cross_entropy([0], [[0.0, 0.0]])[0])  # log 2
    0.6931471...
    """
    labels, sparse, scores = prepare(y_true, y_pred)
    return softmax_cross_entropy(labels, sparse, scores)


@keras.saving.register_keras_serializable(package="keras_ldam")
class CrossEntropy(ClassWeightedLoss):
    """Softmax cross-entropy with class weights: the rows ERM, RW, CB RW and CE-DRW.

    Args:
        counts: Training examples per class, shape `(num_classes,)`, or per label and side,
            `(num_labels, 2)`; `None` for no class weights. See `ClassWeightedLoss`.
        class_weights: Initial class weights; ones by default.
        reduction: As in `ClassWeightedLoss`; Σ w ℓ / Σ w by default.
        name: Name of the loss.
        ignore_class: Integer label that counts nowhere; see `ClassWeightedLoss`.
        axis: Axis of the classes in `y_pred`.

    Call arguments:
        y_true: Integers `(…)` or `(…, 1)`, one-hot or soft labels `(…, num_classes)`.
        y_pred: Scores (logits) `(…, num_classes)`.
        sample_weight: Optional weights per example, `(…)`.

    Returns:
        Scalar, or one value per example with `reduction=None`.

    Raises:
        ValueError: for counts that are not whole numbers ≥ 1, or do not fit `y_pred`.

    Example:

    >>> loss = CrossEntropy([90, 10])
    >>> float(loss([0, 1], [[0.0, 0.0], [0.0, 0.0]]))
    0.6931471...
    """

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns one value per example."""
        return cross_entropy(y_true, y_pred)

    def of_label_and_rest(self, labels: Any, chunks: Any, features: Any) -> Any:
        """Returns one value per example without the scores of all classes."""
        own, rest = chunks.label_and_rest(features, labels)
        return ops.softplus(rest - own)
