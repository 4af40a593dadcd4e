"""LDAM: rare classes get wider margins, Δ_j = C / n_j^(1/4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ldam import counts as class_counts
from keras_ldam.labels import prepare, weigh
from keras_ldam.losses.base import (
    MarginLoss,
    of_class,
    one_for_each_class,
    softmax_cross_entropy,
)
from keras_ldam.losses.logit_adjusted import logit_offsets


@keras.saving.register_keras_serializable(package="keras_ldam")
def ldam(y_true: Any, y_pred: Any, margins: Any, *, scale: float, offsets: Any = None) -> Any:
    """LDAM: cross-entropy after the label's score has been lowered by its margin.

    ℓ = -log [ exp(s(z_y - Δ_y)) / (exp(s(z_y - Δ_y)) + Σ_{j≠y} exp(s z_j)) ]

    Args:
        y_true: Labels: integers of shape `(…)` or `(…, 1)`, or one-hot or soft
            `(…, num_classes)`. With soft labels each score is lowered by its label's share of the
            margin, y_j Δ_j.
        y_pred: Cosines z in [-1, 1], shape `(…, num_classes)`, as from `CosineDense`.
        margins: Δ, shape `(num_classes,)`, as from `keras_ldam.margins`.
        scale: s, the inverse temperature of the softmax; 30 in the official code.
        offsets: Optional numbers that are added to the logits after the scale, shape
            `(num_classes,)`, as those of logit adjustment.

    Returns:
        float32 tensor of shape `(…)`.

    Raises:
        ValueError: if shapes do not fit.

    Example:

    >>> float(ldam([0], [[0.42, 0.18]], margins=[0.5, 0.281], scale=30)[0])  # logits -2.4 and 5.4
    7.80040...

    References:
        Cao et al., 2019, equations 12 and 13. The scale is not in the equations; it stands in the
        official code.
    """
    labels, sparse, scores = prepare(y_true, y_pred)
    logits = scale * _lower(labels, sparse, scores, margins)
    if offsets is not None:
        logits = logits + one_for_each_class(offsets, scores, name="offsets")
    return softmax_cross_entropy(labels, sparse, logits)


@keras.saving.register_keras_serializable(package="keras_ldam")
class LDAM(MarginLoss):
    """Label-distribution-aware margin loss: rare classes get wider margins.

    ℓ = -log [ exp(s(z_y - Δ_y)) / (exp(s(z_y - Δ_y)) + Σ_{j≠y} exp(s z_j)) ],  Δ_j = C / n_j^(1/4)

    where z are cosines between features and class vectors (put `CosineDense` last), n_j counts the
    training examples of class j, and C makes the largest margin equal to `max_margin`.

    Two classes may have a single score z, as of `CosineDense(1)`: ℓ = log(1 + exp(-s(y z - Δ_y)))
    with y = ±1. With `counts` of labels that do not exclude each other this is the loss of each
    label, whose C is its own.

    With `tau` the margins stack with logit adjustment: to each logit, those of the other classes
    too, τ log π_j is added after scale and margin, with π_j = n_j / Σ_k n_k. See `LogitAdjusted`.

    Args:
        counts: Training examples per class n_j, shape `(num_classes,)`, or per label and side,
            `(num_labels, 2)`; see `ClassWeightedLoss`.
        max_margin: Margin of the rarest class, in cosine units, 0 to 2. Too large under-fits, too
            small changes nothing: 0.5 for small data (CIFAR), 0.3 for iNaturalist 2018.
        scale: s > 0. Cosines span only [-1, 1], so without a scale a softmax over them can never
            be sure: 1 under-fits. The official code has 30. The scale multiplies the noise of the
            cosines too, as from dropout before the head, and over many kinds of networks 15 is
            better. The margin in units of logits is s · Δ. `keras_ldam.with_probabilities` gives
            softmax(s · z).
        gradual: Whether the margins grow with what the network has learned. The share that is
            demanded is 1 - H/H₀, at least 0, where H is the cross-entropy of the batch at scale s
            without margins, and H₀ that of the class frequencies alone, or of equal ones where
            that is less, as in batches that are drawn evenly over the classes. The entropy of soft
            labels, the least that H can be, is subtracted from both. `False` demands
            whole margins from the first step, as the official code does: before a network has
            learned anything it can satisfy them only for the frequent classes, by assigning every
            example to them. The share is computed from the batch, so the loss of a batch is not
            quite the mean of its examples' losses, and while the share grows the loss may rise.
            `DRW` validates with whole margins.
        exponent: 1/4, as the theorem has it. 0 gives every class the margin `max_margin` (rows M).
        tau: τ ≥ 0, the strength of the logit adjustment. 0, as in the paper, has none; 1 makes the
            scores those of equally frequent classes, in place of `DRW`.
        test_prior: Class frequencies expected at test time, if not uniform (see `margins`).
        class_weights: Initial class weights; ones by default. `DRW` changes them.
        reduction: As in `ClassWeightedLoss`; Σ w ℓ / Σ w by default.
        name: Name of the loss.
        **kwargs: `ignore_class` and `axis`; see `ClassWeightedLoss`.

    Call arguments:
        y_true: Integers `(batch,)` or `(batch, 1)`, one-hot or soft labels
            `(batch, num_classes)`; dense predictions have axes between batch and classes in both.
        y_pred: Cosines, `(batch, num_classes)`.
        sample_weight: Optional weights per example, `(batch,)`.

    Returns:
        Scalar, or one value per example with `reduction=None`.

    Raises:
        ValueError: for counts that are not whole numbers ≥ 1 or do not fit `y_pred`, and for
            `max_margin`, `scale`, `exponent` or `tau` out of range.

    Example:

    >>> loss = LDAM([12500, 1250])
    >>> loss.margins.round(3).tolist()
    [0.28099..., 0.5]
    >>> official = LDAM([12500, 1250], scale=30, gradual=False)
    >>> float(official([1], [[0.18, 0.42]]))
    7.8...

    References:
        Cao et al., 2019, "Learning Imbalanced Datasets with Label-Distribution-Aware Margin
        Loss", equations 12 and 13. As in the official code, only the label's own score is
        lowered, and s multiplies after the margin has been taken off. Menon et al., 2021,
        "Long-Tail Learning via Logit Adjustment", section 5.2 and table 4, for both together.
    """

    def __init__(
        self,
        counts: Sequence[int] | Mapping[int, int] | np.ndarray,
        *,
        max_margin: float = 0.5,
        scale: float = 15.0,
        gradual: bool = True,
        exponent: float = 0.25,
        tau: float = 0.0,
        test_prior: Sequence[float] | Mapping[int, float] | np.ndarray | None = None,
        class_weights: Sequence[float] | Mapping[int, float] | np.ndarray | None = None,
        reduction: str | None = "mean_with_sample_weight",
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            counts,
            max_margin=max_margin,
            scale=scale,
            exponent=exponent,
            test_prior=test_prior,
            class_weights=class_weights,
            reduction=reduction,
            name=name,
            **kwargs,
        )
        class_counts.check_range("tau", tau, 0, np.inf)
        class_counts.check_flag("gradual", gradual)
        self.gradual, self.tau = bool(gradual), float(tau)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns one value per example."""
        margins = self.margins
        if self.gradual:
            margins = self._share(y_true, y_pred) * ops.convert_to_tensor(margins, dtype="float32")
        return ldam(y_true, y_pred, margins, scale=self.scale, offsets=self._offsets)

    def of_label_and_rest(self, labels: Any, chunks: Any, features: Any) -> Any:
        """Returns one value per example without the scores of all classes."""
        offsets = None if self._offsets is None else ops.convert_to_tensor(self._offsets)
        own, rest = chunks.label_and_rest(features, labels, scale=self.scale, offsets=offsets)
        rest = rest - (0.0 if offsets is None else of_class(offsets, labels, True))
        margins = of_class(ops.convert_to_tensor(self.margins, "float32"), labels, True)
        if self.gradual:
            entropy = ops.stop_gradient(ops.softplus(rest - self.scale * own))
            margins = margins * self._share_of(entropy, labels, True, features)
        return ops.softplus(rest - self.scale * (own - margins))

    @property
    def _offsets(self) -> np.ndarray | None:
        return logit_offsets(self.counts, self.tau) if self.tau else None

    def _share(self, y_true: Any, y_pred: Any) -> Any:
        """The share of the margins that is demanded of a batch."""
        labels, sparse, scores = prepare(y_true, ops.stop_gradient(y_pred))
        logits = self.scale * scores
        if self._offsets is not None:
            logits = logits + ops.convert_to_tensor(self._offsets)
        entropy = softmax_cross_entropy(labels, sparse, logits)
        return self._share_of(entropy, labels, sparse, y_pred)

    def _share_of(self, entropy: Any, labels: Any, sparse: bool, y_pred: Any) -> Any:
        """The same of the cross-entropy of each example; of `y_pred` only the mask matters."""
        surprise = -np.log(self.counts / self.counts.sum(axis=-1, keepdims=True))
        given = of_class(ops.convert_to_tensor(surprise, "float32"), labels, sparse)
        # By the examples' own weights: what counts nothing must not move the others' margins.
        weights = weigh(ops.where(given > 0, 1.0, 0.0), y_pred, self._sample_weight)
        least = (
            0.0 if sparse else -ops.sum(labels * ops.log(ops.where(labels > 0, labels, 1.0)), -1)
        )
        entropy, given, least, weights = (
            ops.sum(ops.where(weights > 0, weights * part, 0.0))
            for part in (entropy, given, least, 1.0)
        )
        # Batches may be drawn evenly over the classes: nothing is learned yet at log K either.
        given = ops.minimum(given, weights * float(np.log(self.counts.shape[-1])))
        entropy, given = entropy - least, given - least
        share = ops.clip(1.0 - ops.divide_no_nan(entropy, given), 0.0, 1.0)
        # NaN is a matter of its own example.
        share = ops.where(share == share, share, 0.0)
        validating = ops.convert_to_tensor(self._validation)[-1] > 0
        return ops.where(ops.logical_or(validating, given <= 0), 1.0, share)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal loss."""
        return {**super().get_config(), "gradual": self.gradual, "tau": self.tau}


def _lower(labels: Any, sparse: bool, scores: Any, margins: Any) -> Any:
    margins = one_for_each_class(margins, scores)
    if not sparse:
        return scores - labels * margins
    if keras.backend.backend() == "tensorflow" and len(margins.shape) == 1:
        # One copy of the scores, in which the rest of the loss works in place. The comparison
        # below makes three, and for thousands of classes they cost as much as the cross-entropy.
        import tensorflow as tf

        flat = tf.reshape(labels, [-1])
        places = tf.stack([tf.range(tf.size(flat)), flat], axis=-1)
        rows = tf.reshape(scores, [-1, scores.shape[-1]])
        lowered = tf.tensor_scatter_nd_sub(rows, places, tf.gather(margins, flat))
        return tf.reshape(lowered, tf.shape(scores))
    is_label = ops.expand_dims(labels, -1) == ops.arange(scores.shape[-1], dtype="int32")
    return scores - ops.where(is_label, margins, 0.0)
