"""What all losses share: counts, class weights, float32, shape checks and the weighted mean."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ldam import counts as class_counts
from keras_ldam import keras_internals
from keras_ldam.labels import (
    as_index,
    assert_labels,
    check_classes,
    check_target,
    prepare,
    present,
    weigh,
    without_scores,
)
from keras_ldam.losses.chunks import Chunks
from keras_ldam.sharding import check_sharded

OVER_DATA = "mean_over_data"
"""The reduction that divides by the mean weight over the training examples."""


class ClassWeightedLoss(keras.losses.Loss):
    """Base of the losses: counts, class weights, float32 and the weighted mean.

    A subclass gives the mathematics in `call(y_true, y_pred)`, one value per example. This base
    multiplies by w_y, the weight of the label's class, and by `sample_weight`, and reduces. By
    default it reduces to Σ w ℓ / Σ w over the batch, as PyTorch's weighted cross-entropy and the
    official LDAM code do, so that class weights shift attention between classes and leave the size
    of the step alone.

    In soft labels each share has the weight of its own class, as in PyTorch, and as if a mixture
    had the mixture of two losses: the label becomes y_j w_j / Σ_k y_k w_k, and the example weighs
    Σ_k y_k w_k.

    A small batch may lack the rare classes, and then divides by little what it has, so the mean of
    many small batches gives the rare classes less than their weight; in a batch of one the weight
    cancels. `reduction="mean_over_data"` divides by the mean weight over the training examples
    instead, Σ_i w_i ℓ_i / (m w̄) for m examples, with w̄ = Σ_j n_j w_j / Σ_j n_j. The mean of small
    batches of one size is then that of the large one, as `gradient_accumulation_steps` of an
    optimizer needs it.

    Under a `tf.distribute` strategy the batch is the global one: each replica divides by the sum
    of the weights over all replicas, in plain `fit` too. Create model, loss and optimizer inside
    `strategy.scope()`. What Keras' own `fit` does not support there (XLA, several machines), the
    step of `keras_ldam.distribution` does.

    The weights live in `class_weights`, a Keras variable, so that a compiled step sees a change.
    They start as ones, and `keras_ldam.DRW` sets them. (On the JAX backend a compiled step keeps
    the value that it was compiled with; `DRW` and `keras_ldam.set_class_weights` compile it again,
    and in a training loop of your own you pass `class_weights` to the call.)

    A label outside the classes raises `ValueError` outside compiled code. Inside, where nothing
    can be raised in general, the loss of that example is NaN (TensorFlow without XLA, as on a CPU,
    raises `InvalidArgumentError`): a run that stops is better than one that learns wrong labels.
    The same holds for a row of labels that is no distribution. (Compiled code on JAX gets whole
    numbers in 32 bits, so a label of 2**32 or more has become another before any loss sees it.) A
    row of zeros has no label and counts nowhere, as `tf.one_hot(-1, num_classes)` gives for void
    pixels; among integers `ignore_class` names what has no label.

    `counts` also say what the targets are:

    - `(num_classes,)`: each example has one of K classes;
    - `(2,)`, and the model ends in a single score z, as of `CosineDense(1)`: two classes, the
      negatives first. The score is the pair (-z/2, z/2), whose softmax is the sigmoid of z, so each
      loss is what its name says of two classes: cross-entropy is the binary one, and so on. (Only
      `VectorScaling` has a form of its own.)
    - `(num_labels, 2)`, negatives and positives of each label: each example has any of the labels,
      with a score for each. Every label is a problem of two classes by itself, with margins and
      weights on both sides, and the loss has one value per example and label.

    Args:
        counts: Training examples per class, shape `(num_classes,)`, or per label and side,
            `(num_labels, 2)`, as of `keras_ldam.count`; `None` for a loss without class weights,
            for any number of classes.
        class_weights: Initial class weights, of the shape of `counts`; ones by default.
        reduction: As in `keras.losses.Loss`, or `"mean_over_data"`.
        name: Name of the loss.
        ignore_class: Integer label that counts nowhere, such as 255 for void pixels or -1 for
            unknown answers.
        axis: Axis of the classes in `y_pred`, and in one-hot labels.

    Raises:
        ValueError: if an argument is not as described.
    """

    tau: float = 0.0
    """Strength of the logit adjustment; see `LogitAdjusted`."""

    def __init__(
        self,
        counts: Sequence[int] | Mapping[int, int] | np.ndarray | None = None,
        *,
        class_weights: Sequence[float] | Mapping[int, float] | np.ndarray | None = None,
        reduction: str | None = "mean_with_sample_weight",
        name: str | None = None,
        ignore_class: int | None = None,
        axis: int = -1,
    ):
        # Float32 whatever Keras' floatx is: in bfloat16 label 257 becomes 256, and margins of
        # 1/100 and of 1/101 become the same.
        self._over_data = reduction == OVER_DATA
        keras_reduction = "sum_over_batch_size" if self._over_data else reduction
        super().__init__(name=name, reduction=keras_reduction, dtype="float32")
        self.counts: Any = None
        if counts is not None:
            self.counts = class_counts.check_counts(counts, multi_label=True)
            check_sharded(len(self.counts) if self.counts.ndim == 1 else 2, "loss")
        self.ignore_class, self.axis = check_target(ignore_class, axis)
        self.class_weights: Any = None
        if self.counts is not None:
            self.class_weights = keras.Variable(
                check_class_weights(class_weights, self.counts.shape),
                trainable=False,
                dtype="float32",
                name="class_weights",
            )
            # What `DRW` validates by: see `validate_by`.
            self._validation = keras.Variable(
                np.ones(self.counts.size + 1), trainable=False, dtype="float32", name="validation"
            )
            self.validate_by(None)
        elif class_weights is not None:
            raise ValueError("`class_weights` need `counts`; pass both.")

    def __call__(
        self, y_true: Any, y_pred: Any, sample_weight: Any = None, *, class_weights: Any = None
    ) -> Any:
        """Returns the reduced loss of a batch.

        Args:
            y_true: Labels, as the loss takes them.
            y_pred: Scores, `(…, num_classes)`.
            sample_weight: Optional weights per example.
            class_weights: Class weights for this call, a tensor of the shape of `counts`, in place
                of the loss's own: in a compiled training loop of your own, pass them as an argument
                of the step.
        """
        chunks = getattr(_here, "chunks", None)
        if chunks is not None:
            with self._weighing(class_weights, sample_weight, one_score=False):
                return self._in_chunks(chunks, y_true, y_pred, sample_weight)
        given = y_pred
        y_true, y_pred = self._present(y_true, y_pred)
        with self._weighing(class_weights, sample_weight, one_score=self._is_one(given)):
            y_true = assert_labels(y_true, y_pred)
            weights, counted = self._weights_of(y_true, y_pred, sample_weight)
            y_true = ops.convert_to_tensor(y_true, "float32")
            y_pred = _where_counted(y_true, y_pred, counted)
            values = self.call(self._weighed_labels(y_true, y_pred), y_pred)
        return self._reduced(values, weights, counted)

    def _reduced(self, values: Any, weights: Any, counted: Any) -> Any:
        """Reduces as Keras does, over all replicas; 0 for an empty batch, which Keras leaves."""
        alone = len(values.shape) == 0
        if alone:  # An example without a batch, which Keras does not divide by its weight.
            values, weights, counted = (ops.reshape(v, (1,)) for v in (values, weights, counted))
        if self.reduction in ("sum_over_batch_size", "mean"):
            # A mean over examples needs to know their number. The mask is in the weights, once.
            keras_internals.set_mask(values, ops.not_equal(counted, 0))
        loss = _Mean(self.name, self.reduction, "float32")(values, values, weights)
        if self.reduction not in (None, "none") and tuple(loss.shape) == (0,):
            loss = ops.sum(loss)
        if self.reduction == "mean_with_sample_weight":
            loss = _mean_over_replicas(loss, ops.sum(weights))
        elif self.reduction in ("sum_over_batch_size", "mean"):
            loss = _mean_over_replicas(loss, _number_of(counted))
        return ops.reshape(loss, ()) if alone else loss

    def _in_chunks(self, chunks: Chunks, y_true: Any, features: Any, sample_weight: Any) -> Any:
        """`__call__` where the scores do not exist; see `in_chunks`.

        A loss that is a function of the label's score and of the log-sum-exp of the others has
        `of_label_and_rest(labels, chunks, features)`, which returns one value per example.
        """
        size = chunks.num_classes
        if self.multi_label or (self.counts is not None and len(self.counts) != size):
            raise ValueError(
                f"{self.name}: `counts` must have one entry for each of the {size} classes of the "
                f"head. Received: shape {self.counts.shape}"
            )
        labels, known = without_scores(y_true, features.shape[:-1], size, self.ignore_class)
        features = _features_where(known, features)
        counted = _one_where(labels >= 0)
        weights = counted
        if self.counts is not None:
            weights = weights * of_class(self._relative, labels, True)
        weights = weigh(weights, features, sample_weight)
        values = self.of_label_and_rest(labels, chunks, features)
        return self._reduced(values, weights, weigh(counted, features))

    def example_weights(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Returns the weight of each example: that of its class, w_y or Σ_j y_j w_j, times its own.

        With `reduction="mean_over_data"` the weights of the classes are divided by w̄.

        Args:
            y_true: Labels, as the loss takes them.
            y_pred: Scores, `(…, num_classes)`; only their shape and their mask matter.
            sample_weight: `None`, or weights `(…)`, `(…, 1)` or, for dense predictions, `(batch,)`,
                which multiply those of the classes.

        Returns:
            float32 tensor of shape `(…)`, 0 where a mask leaves a step out and where a row of
            labels is all zeros; for a loss without counts the examples' own weights, or ones.

        Raises:
            ValueError: if shapes do not fit.
        """
        return self._both_weights(y_true, y_pred, sample_weight)[0]

    def batch_weight(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Returns what the mean over a batch divides by, a scalar; arguments as before.

        That is the sum of the examples' weights, or, under other reductions, the number of examples
        that count: those with a label which no mask leaves out.
        """
        weights, counted = self._both_weights(y_true, y_pred, sample_weight)
        if self.reduction == "mean_with_sample_weight":
            return ops.sum(weights)
        return _number_of(counted)

    def _both_weights(self, y_true: Any, y_pred: Any, sample_weight: Any) -> tuple[Any, Any]:
        given = y_pred
        y_true, y_pred = self._present(y_true, y_pred)
        with self._weighing(None, sample_weight, one_score=self._is_one(given)):
            return self._weights_of(y_true, y_pred, sample_weight)

    def _weighed_labels(self, y_true: Any, y_pred: Any) -> Any:
        """Soft labels with shares as the class weights change them; integers as they are."""
        if self.counts is None:
            return y_true
        labels, sparse, _ = prepare(y_true, y_pred)
        if sparse:
            return y_true
        weighed = labels * self._weights
        return ops.divide_no_nan(weighed, ops.sum(weighed, axis=-1, keepdims=True))

    def _weights_of(self, y_true: Any, y_pred: Any, sample_weight: Any) -> tuple[Any, Any]:
        """`example_weights` of what `_present` returns, and 0 where an example does not count."""
        labels, sparse, scores = prepare(y_true, y_pred)
        if sparse:
            counted = _one_where(labels == as_index(labels, scores.shape[-1]))
        else:
            counted = ops.sum(labels, axis=-1)
            # Exactly one, however shares were rounded; NaN stays what it is.
            counted = ops.where(counted > 0, 1.0, counted)
        weights = counted
        if self.counts is not None:
            weights = weights * of_class(self._relative, labels, sparse)
        return weigh(weights, y_pred, sample_weight), weigh(counted, y_pred)

    def learned_prior(self, counts: Any = None) -> np.ndarray:
        """Returns the class frequencies that the scores learn, ρ_j ∝ n'_j w_j / n_j^τ.

        n are the counts, w the class weights of this moment, and τ is the strength of the logit
        adjustment, 0 for a loss without. So ρ are the training frequencies for a plain loss, and
        1/K each with weights 1/n or with τ = 1. This is exact where s z + τ log π are the logits of
        a cross-entropy; margins, divisors and a focus move scores besides.

        Args:
            counts: How often the classes were drawn in training n', shape `(num_classes,)`, where
                that is not n: after re-sampling.

        Returns:
            float64 array of shape `(num_classes,)` with sum 1.

        Raises:
            ValueError: if the loss has no counts, or `counts` are not one for each class.
        """
        if self.counts is None:
            raise ValueError(f"{self.name}: `learned_prior` needs a loss that has `counts`.")
        own = np.asarray(self.counts, dtype=np.float64)
        drawn = own if counts is None else class_counts.per_class("counts", counts, len(own))
        seen = drawn * ops.convert_to_numpy(self.class_weights) / own**self.tau
        return seen / seen.sum(axis=-1, keepdims=True)

    @property
    def multi_label(self) -> bool:
        """Whether the targets are labels that do not exclude each other."""
        return self.counts is not None and self.counts.ndim == 2

    def _present(self, y_true: Any, y_pred: Any) -> tuple[Any, Any]:
        """Brings targets into the one form that `call` computes with; see `labels.present`."""
        multi_label = self.multi_label
        if self.counts is not None:
            size = len(self.counts)
            check_classes(self.name, y_pred, size, axis=self.axis, multi_label=multi_label)
        y_true, y_pred = present(
            y_true,
            y_pred,
            multi_label=multi_label,
            ignore_class=self.ignore_class,
            axis=self.axis,
        )
        mask = keras_internals.mask_of(y_pred)
        y_pred = ops.cast(y_pred, "float32")
        if mask is not None:  # A cast drops it.
            keras_internals.set_mask(y_pred, mask)
        return y_true, y_pred

    def validate_by(self, class_weights: np.ndarray | None) -> None:
        """Puts other class weights in the place of the loss's own until it is called with `None`.

        `DRW` does so for each validation, and the loss then demands whole margins, so that what is
        validated is the same in every epoch.
        """
        weights = np.ones(self.counts.shape) if class_weights is None else class_weights
        on = float(class_weights is not None)
        self._validation.assign(np.append(weights, on).astype("float32"))

    @property
    def validates(self) -> bool:
        """Whether such weights are in force."""
        return float(ops.convert_to_tensor(self._validation)[-1]) > 0

    @property
    def _weights(self) -> Any:
        given = getattr(_here, "class_weights", None)
        if given is not None:
            return given
        validation = ops.convert_to_tensor(self._validation)
        own = ops.convert_to_tensor(self.class_weights)
        theirs = ops.reshape(validation[:-1], self.counts.shape)
        return ops.where(validation[-1] > 0, theirs, own)

    @property
    def _relative(self) -> Any:
        """The weights of the classes as examples have them."""
        weights = self._weights
        if not self._over_data:
            return weights
        shares = ops.convert_to_tensor(self.counts / self.counts.sum(), "float32")
        return ops.divide_no_nan(weights, ops.sum(shares * weights))

    @contextlib.contextmanager
    def _weighing(
        self, class_weights: Any, sample_weight: Any, *, one_score: bool
    ) -> Iterator[None]:
        """Within it, `class_weights` take the place of the variable, if there are any."""
        if class_weights is not None:
            if self.counts is None:
                raise ValueError(f"{self.name}: `class_weights` need a loss that has `counts`.")
            class_weights = ops.convert_to_tensor(class_weights, "float32")
            if tuple(class_weights.shape) != self.counts.shape:
                raise ValueError(
                    f"{self.name}: `class_weights` must have shape {self.counts.shape}. "
                    f"Received: shape {tuple(class_weights.shape)}"
                )
        before = _here.__dict__.copy()
        _here.class_weights, _here.sample_weight = class_weights, sample_weight
        _here.one_score = one_score
        try:
            yield
        finally:
            for name in ("class_weights", "sample_weight", "one_score"):
                setattr(_here, name, before.get(name))

    @property
    def _sample_weight(self) -> Any:
        """The weights of examples that the loss is being called with."""
        return getattr(_here, "sample_weight", None)

    def _is_one(self, y_pred: Any) -> bool:
        shape = tuple(ops.convert_to_tensor(y_pred).shape)
        return bool(shape) and shape[self.axis] == 1

    @property
    def _one_score(self) -> bool:
        """Whether the loss is being called with single scores, of which pairs have been made."""
        return bool(getattr(_here, "one_score", False))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal loss, with the class weights of this moment."""
        target = {"ignore_class": self.ignore_class, "axis": self.axis}
        config = {**super().get_config(), **target}
        if self._over_data:
            config["reduction"] = OVER_DATA
        if self.counts is not None:
            # So that a model saved after the switch continues training with them.
            weights = ops.convert_to_numpy(self.class_weights)
            config.update(counts=self.counts.tolist(), class_weights=weights.tolist())
        return config


class MarginLoss(ClassWeightedLoss):
    """What the two margin losses share: the margins Δ_j and the scale s. See `LDAM`."""

    def __init__(
        self,
        counts: Sequence[int] | Mapping[int, int] | np.ndarray,
        *,
        max_margin: float = 0.5,
        scale: float = 30.0,
        exponent: float = 0.25,
        test_prior: Sequence[float] | Mapping[int, float] | np.ndarray | None = None,
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
        class_counts.check_range("scale", scale, 0, 1e6, open_low=True)
        self.test_prior: Any = test_prior
        if test_prior is not None and not self.multi_label:
            self.test_prior = class_counts.check_prior("test_prior", test_prior, len(self.counts))
        self.margins = class_counts.margins(
            self.counts, max_margin=max_margin, exponent=exponent, test_prior=self.test_prior
        )
        self.max_margin, self.scale = float(max_margin), float(scale)
        self.exponent = float(exponent)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal loss."""
        prior = self.test_prior
        return {
            **super().get_config(),
            "max_margin": self.max_margin,
            "scale": self.scale,
            "exponent": self.exponent,
            "test_prior": None if prior is None else prior.tolist(),
        }


def set_class_weights(
    model_or_loss: Any, weights: Sequence[float] | Mapping[int, float] | np.ndarray
) -> None:
    """Sets the class weights of a loss, or of the losses of a model, between two calls of `fit`.

    The next `fit` or `evaluate` sees them. On JAX pass the model: its compiled steps keep the
    values that they were compiled with, and are compiled again. Weights that `DRW` validates by,
    in force after a validation that was interrupted, are taken out of force.

    Args:
        model_or_loss: A loss of this library that has counts, or a model that is compiled with one
            or more for the same number of classes.
        weights: Weights per class, of the shape of the loss's `counts`, each at least 0.

    Raises:
        ValueError: for a model without such a loss, or weights of another form.

    Example:

    >>> loss = keras_ldam.LDAM([90, 10])
    >>> set_class_weights(loss, [0.2, 1.8])
    >>> keras.ops.convert_to_numpy(loss.class_weights).tolist()
    [0.2..., 1.7...]
    """
    losses = weighted_losses(model_or_loss)
    if not losses:
        raise ValueError(
            "There are no class weights to set: `model_or_loss` must be a loss of keras_ldam with "
            f"`counts`, or a model compiled with one. Received: {model_or_loss!r}"
        )
    # Checked for all before one is changed.
    checked = [check_class_weights(weights, loss.counts.shape) for loss in losses]
    for loss, own in zip(losses, checked, strict=True):
        loss.class_weights.assign(own)
        loss.validate_by(None)
    if isinstance(model_or_loss, keras.Model):
        compile_again(model_or_loss)


def weighted_losses(model_or_losses: Any) -> list[ClassWeightedLoss]:
    """Returns the losses with class weights among some, or of a model, each once."""
    given = keras.tree.flatten(getattr(model_or_losses, "loss", model_or_losses))
    found = [loss for loss in given if isinstance(loss, ClassWeightedLoss)]
    return [loss for loss in dict.fromkeys(found) if loss.class_weights is not None]


def compile_again(model: keras.Model, steps: Sequence[str] = ("train", "test")) -> None:
    """Makes Keras' JAX trainer trace its steps again, with the variables of losses as they are."""
    if keras.backend.backend() != "jax":
        return
    for name in steps:
        if getattr(model, f"{name}_function") is not None:
            with _as_another_function(model, f"{name}_step"):
                getattr(model, f"make_{name}_function")(force=True)


@contextlib.contextmanager
def _as_another_function(model: keras.Model, name: str) -> Iterator[None]:
    """Within it, a method is no longer equal to itself: `jax.jit` traces equal ones once."""
    method, own = getattr(model, name), name in vars(model)
    setattr(model, name, lambda *arguments: method(*arguments))
    try:
        yield
    finally:
        delattr(model, name)
        if own:
            setattr(model, name, method)


def softmax_cross_entropy(labels: Any, sparse: bool, logits: Any) -> Any:
    """Softmax cross-entropy of what `prepare` returns, one value per example."""
    if sparse:
        values = ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        # A label that is no class, inside compiled code.
        return ops.where(labels < 0, float("nan"), values)
    return ops.categorical_crossentropy(labels, logits, from_logits=True)


def of_class(values: Any, labels: Any, sparse: bool) -> Any:
    """The value of each example's class; of soft labels the mean by their shares.

    Args:
        values: A tensor of the shape of `counts`.
        labels: What `prepare` returns of what `present` does.
        sparse: Whether they are whole numbers.
    """
    if len(values.shape) == 1 and sparse:
        return ops.take(values, as_index(labels, values.shape[0]), axis=0)
    if len(values.shape) == 1:
        return ops.matmul(labels, ops.expand_dims(values, -1))[..., 0]
    if sparse:
        return ops.where(labels == 1, values[:, 1], values[:, 0])
    return ops.sum(labels * values, axis=-1)


def of_answers(yes: Any, no: Any, labels: Any, sparse: bool) -> Any:
    """The loss of each answer: `yes` for label 1 and `no` for label 0, mixed for a share between.

    Args:
        yes: Loss of each answer if it is 1.
        no: Loss of each answer if it is 0.
        labels: What `prepare` returns for pairs of scores.
        sparse: Whether they are whole numbers.
    """
    if sparse:
        # A label that is neither, inside compiled code.
        return ops.where(labels < 0, float("nan"), ops.where(labels == 1, yes, no))
    return labels[..., 1] * yes + labels[..., 0] * no


def one_for_each_class(values: Any, scores: Any, name: str = "margins") -> Any:
    """Values of the classes as a float32 tensor, checked against the last axes of the scores."""
    values = ops.convert_to_tensor(values, dtype="float32")
    axes = 2 if len(values.shape) == 2 else 1
    if tuple(values.shape) != tuple(scores.shape[-axes:]):
        raise ValueError(
            f"`{name}` must have one entry for each of the {scores.shape[-1]} classes of "
            f"`y_pred`. Received: shape {tuple(values.shape)}"
        )
    return values


# ----------------------------------------------------------------------------- chunks of classes


@contextlib.contextmanager
def in_chunks(chunks: Chunks) -> Iterator[None]:
    """Within it, what a loss is called with are features, whose scores `chunks` computes."""
    before, _here.chunks = getattr(_here, "chunks", None), chunks
    try:
        yield
    finally:
        _here.chunks = before


def _one_where(known: Any) -> Any:
    """1 where it is known what an example is, else NaN; in float32 whatever floatx is."""
    return ops.where(known, ops.ones((), "float32"), ops.full((), float("nan"), "float32"))


def _features_where(known: Any, features: Any) -> Any:
    """Features without those that count nothing, which may be NaN, and with the mask of the rest.

    Args:
        known: Which labels are known, `(…)`, or `None` for all.
        features: `(…, features)`, with or without a mask.
    """
    mask, rank = keras_internals.mask_of(features), len(features.shape) - 1
    if mask is not None and len(mask.shape) <= rank:
        mask = ops.cast(mask, "bool")
        while len(mask.shape) < rank:
            mask = ops.expand_dims(mask, -1)
        known = mask if known is None else ops.logical_and(known, mask)
    if known is None:
        return features
    features = ops.where(ops.expand_dims(known, -1), features, ops.zeros_like(features))
    keras_internals.set_mask(features, known)
    return features


def _where_counted(labels: Any, scores: Any, counted: Any) -> Any:
    """Scores, and zeros where an example does not count, whose scores may be anything."""
    mask = keras_internals.mask_of(scores)
    if mask is None and len(labels.shape) < len(scores.shape):
        return scores  # Whole numbers: all count.
    scores = ops.where(ops.expand_dims(ops.not_equal(counted, 0), -1), scores, 0.0)
    if mask is not None:
        keras_internals.set_mask(scores, mask)
    return scores


def _number_of(counted: Any) -> Any:
    """How many examples count."""
    return ops.sum(ops.cast(ops.not_equal(counted, 0), "float32"))


class _Mean(keras.losses.Loss):
    """Keras' reductions of given values."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return y_pred


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


def _mean_over_replicas(loss: Any, weight: Any) -> Any:
    """Makes the mean over a replica's share one over the global batch.

    Keras has divided `loss`, S_r/W_r, by the number of replicas R, and adds up what the replicas'
    gradients are: from S_r/(W_r R) it takes the factor R W_r/W to get Σ_r S_r/W. The value is the
    same for each replica, for Keras logs a mean that is weighted by the number of their examples.
    """
    if keras.backend.backend() != "tensorflow" or getattr(_here, "local", False):
        return loss
    import tensorflow as tf

    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return loss
    of_all = replica.num_replicas_in_sync
    parts = tf.stack([weight, tf.math.multiply_no_nan(loss * of_all, weight)])
    total, summed = tf.unstack(replica.all_reduce(tf.distribute.ReduceOp.SUM, parts))
    own = loss * (of_all * ops.divide_no_nan(weight, total))
    return own + ops.stop_gradient(ops.divide_no_nan(summed, total) / of_all - own)


def check_class_weights(weights: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Returns class weights as a float32 array; ones for `None`.

    Args:
        weights: Weights per class, or per label and side.
        shape: That of the counts.

    Raises:
        ValueError: if they are not one finite number of at least 0 for each class.
    """
    if weights is None:
        return np.ones(shape, dtype=np.float32)
    if len(shape) == 1:
        weights = class_counts.per_class("class_weights", weights, shape[0])
    try:
        found = np.asarray(weights, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        found = np.empty(0)
    if found.shape != shape or not np.all(np.isfinite(found) & (found >= 0)):
        wanted = f"{shape[0]}" if len(shape) == 1 else f"{shape[0]} × 2"
        raise ValueError(
            f"`class_weights` must be {wanted} finite numbers of at least 0. Received: "
            f"{class_counts.shown(weights)}"
        )
    return found.astype(np.float32)
