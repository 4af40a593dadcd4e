"""Losses for long-tailed classes: cross-entropy, focal, LDAM and its hinge form.

Each loss has two faces. The function gives one value for each example; the class adds counts,
class weights and the weighted mean, and is what `model.compile(loss=…)` takes.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence

import keras
import numpy as np
from keras import ops

from keras_ldam import counts as class_counts
from keras_ldam.labels import prepare, weigh

FOCAL_FORMS = ("softmax", "sigmoid")

# ----------------------------------------------------------------------------- the mathematics


@keras.saving.register_keras_serializable(package="keras_ldam")
def cross_entropy(y_true, y_pred):
    """Softmax cross-entropy, ℓ = -z_y + log Σ_j exp(z_j), for each example.

    Args:
        y_true: Labels: integers of shape `[…]` or `[…, 1]`, or one-hot or soft `[…, K]`.
        y_pred: Scores z (logits), shape `[…, K]`.

    Returns:
        float32 tensor of shape `[…]`.

    Example:

    >>> float(cross_entropy([0], [[0.0, 0.0]])[0])  # log 2
    0.6931471...
    """
    labels, sparse, scores = prepare(y_true, y_pred)
    return _cross_entropy(labels, sparse, scores)


@keras.saving.register_keras_serializable(package="keras_ldam")
def ldam(y_true, y_pred, margins, scale=30.0):
    """LDAM: cross-entropy after the label's score has been lowered by its margin.

    ℓ = -log [ exp(s(z_y - Δ_y)) / (exp(s(z_y - Δ_y)) + Σ_{j≠y} exp(s z_j)) ]

    Args:
        y_true: Labels: integers of shape `[…]` or `[…, 1]`, or one-hot or soft `[…, K]`. With
            soft labels each score is lowered by its label's share of the margin, y_j Δ_j.
        y_pred: Cosines z in [-1, 1], shape `[…, K]`, as from `CosineDense`.
        margins: Δ, shape `[K]`, as from `keras_ldam.margins`.
        scale: s, the inverse temperature of the softmax.

    Returns:
        float32 tensor of shape `[…]`.

    Raises:
        ValueError: if shapes do not fit.

    Example:

    >>> float(ldam([0], [[0.42, 0.18]], margins=[0.5, 0.281])[0])  # scores -2.4 and 5.4
    7.80040...

    References:
        Cao et al., 2019, equations 12 and 13. The scale is not in the equations; it stands in the
        official code.
    """
    labels, sparse, scores = prepare(y_true, y_pred)
    return _cross_entropy(labels, sparse, scale * _lower(labels, sparse, scores, margins))


@keras.saving.register_keras_serializable(package="keras_ldam")
def ldam_hinge(y_true, y_pred, margins, scale=30.0):
    """LDAM-HG: the multi-class hinge loss with a margin for each class.

    ℓ = s · max(max_{j≠y} z_j - z_y + Δ_y, 0)

    Args:
        y_true: Labels, as in `ldam`; with soft labels the mean of ℓ over the label's shares.
        y_pred: Cosines z in [-1, 1], shape `[…, K]`.
        margins: Δ, shape `[K]`; equal ones give the multi-class hinge (HG).
        scale: s. The paper leaves it open: cosines alone give gradients too small to train with.

    Returns:
        float32 tensor of shape `[…]`.

    Raises:
        ValueError: if shapes do not fit.

    References:
        Cao et al., 2019, equation 11.
    """
    labels, sparse, scores = prepare(y_true, y_pred)
    margins = _one_for_each_class(margins, scores)
    rivals = _best_rivals(scores)
    hinges = ops.relu(rivals - scores + margins)
    if sparse:
        return scale * _pick(hinges, labels)
    return scale * ops.sum(labels * hinges, axis=-1)


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
        entropy = _cross_entropy(labels, sparse, scores)
        return _modulated(entropy, gamma)
    if sparse:
        labels = ops.one_hot(labels, scores.shape[-1], dtype="float32")
    right = ops.softplus(-scores), ops.softplus(scores)
    return ops.sum(
        labels * _modulated(right[0], gamma) + (1.0 - labels) * _modulated(right[1], gamma),
        axis=-1,
    )


def _check_focus(gamma, form):
    class_counts.check_range("gamma", gamma, 0, np.inf)
    if form not in FOCAL_FORMS:
        raise ValueError(f"unknown focal form {form!r}; known: {', '.join(FOCAL_FORMS)}.")


def _modulated(entropy, gamma):
    # (1-p)^γ · entropy with p = exp(-entropy). The floor keeps the power's derivative finite
    # where p = 1, for γ < 1 too; the product is zero there all the same.
    if gamma == 0:
        return entropy
    miss = ops.maximum(-ops.expm1(-entropy), keras.config.epsilon())
    return miss**gamma * entropy


def _one_for_each_class(margins, scores):
    margins = ops.convert_to_tensor(margins, dtype="float32")
    if tuple(margins.shape) != (scores.shape[-1],):
        raise ValueError(
            f"margins must be one for each of the {scores.shape[-1]} classes of y_pred; received "
            f"shape {tuple(margins.shape)}."
        )
    return margins


def _lower(labels, sparse, scores, margins):
    margins = _one_for_each_class(margins, scores)
    if not sparse:
        return scores - labels * margins
    if keras.backend.backend() == "tensorflow":
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


def _cross_entropy(labels, sparse, logits):
    if sparse:
        return ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    return ops.categorical_crossentropy(labels, logits, from_logits=True)


def _best_rivals(scores):
    """max_{k≠j} z_k for every j: the best score, or the second best where j itself is best."""
    best_two, where = ops.top_k(scores, k=2)
    is_best = ops.arange(scores.shape[-1], dtype="int32") == ops.cast(where[..., :1], "int32")
    return ops.where(is_best, best_two[..., 1:], best_two[..., :1])


def _pick(values, labels):
    return ops.squeeze(ops.take_along_axis(values, ops.expand_dims(labels, -1), axis=-1), axis=-1)


# ----------------------------------------------------------------------------- the losses


class ClassWeightedLoss(keras.losses.Loss):
    """Base of the losses: counts, class weights, float32 and the weighted mean.

    A subclass gives the mathematics in `call(y_true, y_pred)`, one value for each example. This
    base multiplies by w_y, the weight of the label's class (for soft labels Σ_j y_j w_j), and by
    `sample_weight`, and reduces. By default it reduces to Σ w ℓ / Σ w over the batch, as PyTorch's
    weighted cross-entropy and the official LDAM code do; so class weights shift attention between
    classes and leave the size of the step alone.

    Under a `tf.distribute` strategy the batch is the global one: each replica divides by the sum
    of the weights over all replicas, in plain `fit` too. Create model, loss and optimizer inside
    `strategy.scope()`. What Keras' own `fit` cannot do there (XLA, several machines), the step of
    `keras_ldam.distribution` can.

    The weights live in `class_weights`, a Keras variable, so that a compiled step sees a change.
    They start as ones, and `keras_ldam.DRW` sets them. (On the JAX backend a compiled step keeps
    what it saw when it was compiled; `DRW` has it compiled again.)

    A label outside the classes raises `ValueError` outside compiled code. Inside, where nothing
    can be raised in general, the loss of that example is NaN (TensorFlow on CPU raises its own
    `InvalidArgumentError`): a run that stops is better than one that learns wrong labels. What is
    to be ignored, as void pixels are, needs the label of some class, and a `sample_weight` of 0.

    Args:
        counts: Training examples per class, shape `[num_classes]`; None for a loss without class
            weights, for any number of classes.
        class_weights: First value of the class weights, shape `[num_classes]`; ones by default.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Raises:
        ValueError: if `counts` or `class_weights` are not as described.
    """

    def __init__(
        self,
        counts: Sequence[int] | np.ndarray | None = None,
        *,
        class_weights: Sequence[float] | np.ndarray | None = None,
        reduction: str | None = "mean_with_sample_weight",
        name: str | None = None,
    ):
        # Float32 whatever Keras' floatx is: in bfloat16 label 257 becomes 256, and margins of
        # 1/100 and of 1/101 become the same.
        super().__init__(name=name, reduction=reduction, dtype="float32")
        self.counts = None if counts is None else class_counts.check_counts(counts)
        self.class_weights = None
        if self.counts is not None:
            self.class_weights = keras.Variable(
                _check_class_weights(class_weights, len(self.counts)),
                trainable=False,
                dtype="float32",
                name="class_weights",
            )
        elif class_weights is not None:
            raise ValueError("class_weights need counts; pass counts too.")

    def __call__(self, y_true, y_pred, sample_weight=None):
        weights = self.example_weights(y_true, y_pred, sample_weight)
        loss = super().__call__(y_true, y_pred, weights)
        if self.reduction == "mean_with_sample_weight":
            loss = _mean_over_replicas(loss, ops.sum(weights))
        return loss

    def example_weights(self, y_true, y_pred, sample_weight=None):
        """Weight of each example: that of its class, w_y or Σ_j y_j w_j, times its own.

        Args:
            y_true: Labels, as the loss takes them.
            y_pred: Scores `[…, K]`; only their shape and their mask matter.
            sample_weight: None, or weights `[…]`, `[…, 1]` or, for dense predictions, `[batch]`,
                that multiply those of the classes.

        Returns:
            float32 tensor of shape `[…]`, 0 where a mask leaves a step out; for a loss without
            counts the examples' own weights, or ones.

        Raises:
            ValueError: if shapes do not fit.
        """
        labels, sparse, scores = prepare(y_true, y_pred)
        num_classes = scores.shape[-1]
        if self.counts is not None and num_classes != len(self.counts):
            hint = " Two classes need two scores, and labels 0 and 1." if num_classes == 1 else ""
            raise ValueError(
                f"{self.name}: counts name {len(self.counts)} classes, but y_pred has "
                f"{num_classes} (shape {tuple(scores.shape)}).{hint}"
            )
        if sparse:
            inside = ops.clip(labels, 0, num_classes - 1)
            weights = 1.0 if self.counts is None else ops.take(self.class_weights, inside, axis=0)
            weights = ops.where(labels == inside, weights, float("nan"))
        elif self.counts is None:
            weights = ops.ones_like(labels[..., 0])
        else:
            weights = ops.matmul(labels, ops.expand_dims(self.class_weights, -1))[..., 0]
        return weigh(weights, y_pred, sample_weight)

    def get_config(self):
        config = super().get_config()
        if self.counts is not None:
            # With the weights of this moment, so that a model saved after the switch goes on
            # training with them.
            weights = self.class_weights.numpy()
            config.update(counts=self.counts.tolist(), class_weights=weights.tolist())
        return config


# ----------------------------------------------------------------------------- many replicas

_here = threading.local()
"""Each replica of a strategy is traced in a thread of its own."""


@contextlib.contextmanager
def local_batches() -> Iterator[None]:
    """Within it, a loss is the mean over its replica's share of the batch alone.

    For a step that weighs the shares itself, as that of `keras_ldam.distribution` does: nothing
    can be summed over replicas inside a function that XLA compiles.
    """
    before, _here.local = getattr(_here, "local", False), True
    try:
        yield
    finally:
        _here.local = before


def _mean_over_replicas(loss, weight):
    """Makes the mean over a replica's share one over the global batch.

    Keras has divided `loss`, S_r/W_r, by the number of replicas R, and adds up what the replicas'
    gradients are: from S_r/(W_r R) it takes the factor R W_r/W to get Σ_r S_r/W.
    """
    if keras.backend.backend() != "tensorflow" or getattr(_here, "local", False):
        return loss
    import tensorflow as tf

    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return loss
    total = replica.all_reduce(tf.distribute.ReduceOp.SUM, weight)
    return loss * (replica.num_replicas_in_sync * ops.divide_no_nan(weight, total))


def _check_class_weights(weights, num_classes):
    if weights is None:
        return np.ones(num_classes, dtype=np.float32)
    weights = np.asarray(weights, dtype=np.float32)
    if weights.shape != (num_classes,) or not np.all(np.isfinite(weights) & (weights >= 0)):
        raise ValueError(
            f"class_weights must be {num_classes} numbers of at least 0, one for each class; "
            f"received shape {weights.shape}: {np.array2string(weights, threshold=6)}."
        )
    return weights


@keras.saving.register_keras_serializable(package="keras_ldam")
class CrossEntropy(ClassWeightedLoss):
    """Softmax cross-entropy with class weights: the rows ERM, RW, CB RW and CE-DRW.

    Args:
        counts: Training examples per class, shape `[num_classes]`; None for no class weights.
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
        ValueError: for counts that are not whole numbers ≥ 1, or do not fit `y_pred`.

    Example:

    >>> loss = CrossEntropy([90, 10])
    >>> float(loss([0, 1], [[0.0, 0.0], [0.0, 0.0]]))
    0.6931471...
    """

    def call(self, y_true, y_pred):
        return cross_entropy(y_true, y_pred)


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


class MarginLoss(ClassWeightedLoss):
    """What the two margin losses share: the margins Δ_j and the scale s. See `LDAM`."""

    def __init__(
        self,
        counts: Sequence[int] | np.ndarray,
        *,
        max_margin: float = 0.5,
        scale: float = 30.0,
        exponent: float = 0.25,
        test_prior: Sequence[float] | np.ndarray | None = None,
        class_weights: Sequence[float] | np.ndarray | None = None,
        reduction: str | None = "mean_with_sample_weight",
        name: str | None = None,
    ):
        super().__init__(
            class_counts.check_counts(counts),
            class_weights=class_weights,
            reduction=reduction,
            name=name,
        )
        class_counts.check_range("scale", scale, 0, 1e6, open_low=True)
        self.margins = class_counts.margins(
            self.counts, max_margin, exponent=exponent, test_prior=test_prior
        )
        self.max_margin, self.scale, self.exponent = float(max_margin), float(scale), exponent
        self.test_prior = test_prior

    def get_config(self):
        prior = self.test_prior
        return {
            **super().get_config(),
            "max_margin": self.max_margin,
            "scale": self.scale,
            "exponent": self.exponent,
            "test_prior": None if prior is None else [float(p) for p in prior],
        }


@keras.saving.register_keras_serializable(package="keras_ldam")
class LDAM(MarginLoss):
    """Label-distribution-aware margin loss: rare classes get wider margins.

    ℓ = -log [ exp(s(z_y - Δ_y)) / (exp(s(z_y - Δ_y)) + Σ_{j≠y} exp(s z_j)) ],  Δ_j = C / n_j^(1/4)

    where z are cosines between features and class vectors (put `CosineDense` last), n_j counts the
    training examples of class j, and C makes the largest margin equal to `max_margin`.

    Args:
        counts: Training examples per class n_j, shape `[num_classes]`.
        max_margin: Margin of the rarest class, in cosine units, 0 to 2. Too large under-fits, too
            small changes nothing: 0.5 for small data (CIFAR), 0.3 for iNaturalist 2018.
        scale: s > 0. Cosines span only [-1, 1], so without a scale a softmax over them can never
            be sure; 10 to 30 work about the same, 1 under-fits. The margin in the softmax's own
            units is s · Δ. Multiply by s to serve: probabilities = softmax(s · z).
        exponent: 1/4, as the theorem has it. 0 gives every class the margin `max_margin` (rows M).
        test_prior: Class frequencies expected at test time, if not uniform (see `margins`).
        class_weights: First class weights; ones by default. `DRW` changes them.
        reduction: As in `keras.losses.Loss`; Σ w ℓ / Σ w by default.
        name: Name of the loss.

    Call arguments:
        y_true: Integers `[batch]` or `[batch, 1]`, one-hot or soft labels `[batch, K]`; dense
            predictions have axes between batch and classes in both.
        y_pred: Cosines `[batch, K]`.
        sample_weight: Optional weights per example, `[batch]`.

    Returns:
        Scalar, or one value for each example with `reduction=None`.

    Raises:
        ValueError: for counts that are not whole numbers ≥ 1 or do not fit `y_pred`, and for
            `max_margin`, `scale` or `exponent` out of range.

    Example:

    >>> loss = LDAM([12500, 1250])
    >>> loss.margins.round(3).tolist()
    [0.28099..., 0.5]
    >>> float(loss([1], [[0.18, 0.42]]))
    7.8...

    References:
        Cao et al., 2019, "Learning Imbalanced Datasets with Label-Distribution-Aware Margin
        Loss", equations 12 and 13. As in the official code, only the label's own score is
        lowered, and s multiplies after the margin has been taken off.
    """

    def call(self, y_true, y_pred):
        return ldam(y_true, y_pred, self.margins, self.scale)


@keras.saving.register_keras_serializable(package="keras_ldam")
class LDAMHinge(MarginLoss):
    """The hinge form of LDAM: ℓ = s · max(max_{j≠y} z_j - z_y + Δ_y, 0), Δ_j = C / n_j^(1/4).

    The paper proposes it first, then smooths it to `LDAM`, since the hinge is harder to optimise;
    with 100 classes it fails. `exponent=0` gives every class the margin C, the plain multi-class
    hinge (rows HG; section 4.2). Without any margin it would be 0 where all scores are equal, and
    nothing would be learned.

    Args:
        counts: Training examples per class n_j, shape `[num_classes]`.
        max_margin: Margin of the rarest class, in cosine units, 0 to 2.
        scale: s > 0. The paper leaves it open. Without it the gradients of cosines are so small
            that nothing trains; with s = 30 an example inside its margin pulls as hard as an
            unlearnt one does under `LDAM`.
        exponent: 1/4, as the theorem has it; 0 gives every class the same margin.
        test_prior: Class frequencies expected at test time, if not uniform (see `margins`).
        class_weights: First class weights; ones by default. `DRW` changes them.
        reduction: As in `keras.losses.Loss`; Σ w ℓ / Σ w by default.
        name: Name of the loss.

    Call arguments:
        y_true: Labels, as in `LDAM`.
        y_pred: Cosines `[batch, K]`.
        sample_weight: Optional weights per example, `[batch]`.

    Returns:
        Scalar, or one value for each example with `reduction=None`.

    Raises:
        ValueError: as `LDAM` does.

    Example:

    >>> loss = LDAMHinge([100, 100], max_margin=0.5, scale=1.0)
    >>> round(float(loss([0], [[0.4, 0.1]])), 4)
    0.2

    References:
        Cao et al., 2019, equation 11.
    """

    def call(self, y_true, y_pred):
        return ldam_hinge(y_true, y_pred, self.margins, self.scale)
