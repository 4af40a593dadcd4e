"""The hinge form of LDAM."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ldam.labels import prepare
from keras_ldam.losses.base import MarginLoss, one_for_each_class


@keras.saving.register_keras_serializable(package="keras_ldam")
def ldam_hinge(y_true: Any, y_pred: Any, margins: Any, *, scale: float) -> Any:
    """LDAM-HG: the multi-class hinge loss with a margin for each class.

    ℓ = s · max(max_{j≠y} z_j - z_y + Δ_y, 0)

    Args:
        y_true: Labels, as in `ldam`; with soft labels the mean of ℓ over the label's shares.
        y_pred: Cosines z in [-1, 1], shape `(…, num_classes)`.
        margins: Δ, shape `(num_classes,)`; equal ones give the multi-class hinge (HG).
        scale: s. The paper leaves it open: cosines alone give gradients too small to train with.

    Returns:
        float32 tensor of shape `(…)`.

    Raises:
        ValueError: if shapes do not fit.

    References:
        Cao et al., 2019, equation 11.
    """
    labels, sparse, scores = prepare(y_true, y_pred)
    margins = one_for_each_class(margins, scores)
    rivals = _best_rivals(scores)
    hinges = ops.relu(rivals - scores + margins)
    if sparse:
        # A label that is no class, inside compiled code.
        return ops.where(labels < 0, float("nan"), scale * _pick(hinges, labels))
    return scale * ops.sum(labels * hinges, axis=-1)


@keras.saving.register_keras_serializable(package="keras_ldam")
class LDAMHinge(MarginLoss):
    """The hinge form of LDAM: ℓ = s · max(max_{j≠y} z_j - z_y + Δ_y, 0), Δ_j = C / n_j^(1/4).

    The paper proposes it first, then smooths it to `LDAM`, since the hinge is harder to optimize;
    with 100 classes it fails. `exponent=0` gives every class the margin C, the plain multi-class
    hinge (rows HG; section 4.2). Without any margin it would be 0 where all scores are equal, and
    nothing would be learned.

    Args:
        counts: Training examples per class n_j, shape `(num_classes,)`, or per label and side,
            `(num_labels, 2)`; see `ClassWeightedLoss`.
        max_margin: Margin of the rarest class, in cosine units, 0 to 2.
        scale: s > 0. The paper leaves it open. Without it the gradients of cosines are so small
            that nothing trains; with s = 30 an example inside its margin pulls as hard as an
            unlearnt one does under `LDAM`.
        exponent: 1/4, as the theorem has it; 0 gives every class the same margin.
        test_prior: Class frequencies expected at test time, if not uniform (see `margins`).
        class_weights: Initial class weights; ones by default. `DRW` changes them.
        reduction: As in `ClassWeightedLoss`; Σ w ℓ / Σ w by default.
        name: Name of the loss.
        **kwargs: `ignore_class` and `axis`; see `ClassWeightedLoss`.

    Call arguments:
        y_true: Labels, as in `LDAM`.
        y_pred: Cosines, `(batch, num_classes)`.
        sample_weight: Optional weights per example, `(batch,)`.

    Returns:
        Scalar, or one value per example with `reduction=None`.

    Raises:
        ValueError: as `LDAM` does.

    Example:

    >>> loss = LDAMHinge([100, 100], max_margin=0.5, scale=1.0)
    >>> round(float(loss([0], [[0.4, 0.1]])), 4)
    0.2

    References:
        Cao et al., 2019, equation 11.
    """

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns one value per example."""
        return ldam_hinge(y_true, y_pred, self.margins, scale=self.scale)


def _best_rivals(scores: Any) -> Any:
    """max_{k≠j} z_k for every j: the best score, or the second best where j itself is best."""
    best_two, where = ops.top_k(scores, k=2)
    is_best = ops.arange(scores.shape[-1], dtype="int32") == ops.cast(where[..., :1], "int32")
    return ops.where(is_best, best_two[..., 1:], best_two[..., :1])


def _pick(values: Any, labels: Any) -> Any:
    return ops.squeeze(ops.take_along_axis(values, ops.expand_dims(labels, -1), axis=-1), axis=-1)
