"""What all losses share: counts, class weights, float32, shape checks and the weighted mean."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence

import keras
import numpy as np
from keras import ops

from keras_ldam import counts as class_counts
from keras_ldam.labels import prepare, weigh


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


def softmax_cross_entropy(labels, sparse, logits):
    """Softmax cross-entropy of what `prepare` returns, one value for each example."""
    if sparse:
        return ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    return ops.categorical_crossentropy(labels, logits, from_logits=True)


def one_for_each_class(margins, scores):
    margins = ops.convert_to_tensor(margins, dtype="float32")
    if tuple(margins.shape) != (scores.shape[-1],):
        raise ValueError(
            f"margins must be one for each of the {scores.shape[-1]} classes of y_pred; received "
            f"shape {tuple(margins.shape)}."
        )
    return margins


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
