"""Training with so many classes that the scores of a batch do not fit into memory."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ldam import counts as class_counts
from keras_ldam import keras_internals
from keras_ldam.layers import CosineDense, inputs_of
from keras_ldam.losses import Chunks, Negatives, SampledChunks, in_chunks
from keras_ldam.metrics import ClassErrors
from keras_ldam.sampling import class_chances
from keras_ldam.sharding import ShardedClasses

_MOST_CLASSES = 2**24
"""Above it a float32, which labels and guesses pass through, does not hold every class."""


@keras.saving.register_keras_serializable(package="keras_ldam")
class ChunkedTraining(keras.Model):
    """Trains a model with very many classes without an array of `(batch, num_classes)` scores.

    The loss and its gradient are computed from the features before the last layer and the class
    vectors in it, `chunk_size` classes at a time, and the backward pass computes each chunk again:
    memory is that of a chunk, not of K. Values are those of the model itself, up to rounding. The
    class vectors, their gradient and the optimizer's state stay whole.

    The wrapped model shares its variables, so train the wrapper and then use, save or export the
    model itself. The losses are `LDAM`, `LogitAdjusted` and `CrossEntropy`, with class weights,
    `DRW`, margins and all their arguments; labels are integers. Of metrics there is `ClassErrors`,
    for which each step computes the scores once more, to find the best class.

    With `negatives=m` training is an approximation that takes less time: of the classes that are
    not the label's, each step sees m, drawn anew, in which class j is expected π_j times,
    π_j = min(1, c n_j^(1 - power)). The sum over all other classes that is in each loss is
    estimated by the draw's, Σ_k exp(s z_k) / π_k, whose mean over draws it is; so a class that is
    drawn seldom counts as much as it should, and margins, weights and adjustment are as ever. The
    logarithm of an estimate is too small on average, by about half its relative variance: more
    negatives make it less. With all classes it is exact. Validation sees all classes, in chunks.
    `rare_share` tells which part of the negatives the classes with few examples have.

    `predict` of the wrapped model returns all scores, `(examples, num_classes)`. `best` returns the
    best ones alone.

    Args:
        model: A functional or sequential model, built, with one output, that comes out of a
            `CosineDense`, or of a `Dense` without an activation.
        chunk_size: Classes per chunk, at least 1. A chunk holds a few arrays of
            `(batch, chunk_size)`, and copies of as many class vectors.
        negatives: Classes that each training step draws, m, 1 to `num_classes`; by default there is
            no draw, and all classes count.
        power: From 0, for draws as frequent as the classes, to 1, for all classes equally often.
            Without counts in the loss all are equally frequent.
        seed: Seed of the draws, a whole number; by default another one each time. A loaded wrapper
            begins with it again, so leave it out where training is resumed often.
        **kwargs: Further arguments of `keras.Model`.

    Raises:
        ValueError: if an argument is not as described; from `compile`, for another loss or metric.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras_ldam.CosineDense(1000)])
    >>> trained = ChunkedTraining(model, chunk_size=256)
    >>> trained.compile("adam", loss=keras_ldam.LDAM(np.arange(1, 1001)))
    >>> history = trained.fit(np.ones((4, 8)), np.array([0, 1, 2, 999]), verbose=0)
    >>> scores, classes = trained.best(np.ones((4, 8)), 5)
    >>> classes.shape
    (4, 5)
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        chunk_size: int = 8192,
        negatives: int | None = None,
        power: float = 0.5,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        class_counts.check_whole("chunk_size", chunk_size, 1)
        class_counts.check_range("power", power, 0, 1)
        head, features = _head_of(model)
        _check_head(head)
        if seed is not None:
            class_counts.check_whole("seed", seed, 0)
        if negatives is not None:
            class_counts.check_whole("negatives", negatives, 1)
            if negatives > head.units:
                raise ValueError(
                    f"`negatives` must be at most {head.units}, the number of classes. Received: "
                    f"negatives={negatives}"
                )
        if isinstance(keras.distribution.distribution(), ShardedClasses):
            raise ValueError(
                "`ChunkedTraining` is for one device's classes, and ShardedClasses divides them: "
                "train `model` itself."
            )
        super().__init__(**{"autocast": False, **kwargs})  # The model casts its inputs itself.
        self.model, self.chunk_size = model, int(chunk_size)
        self.negatives = None if negatives is None else int(negatives)
        self.power, self.seed = float(power), None if seed is None else int(seed)
        self._draws: Negatives | None = None
        if negatives is not None:
            self._seeds = keras.random.SeedGenerator(self.seed)
        # As functions: as attributes, their layers would be saved a second time.
        self._features = keras.Model(inputs_of(model), features).__call__
        self._head = lambda: head
        self._guesses = False
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns what scores are products of with class vectors, `(…, features + 1)`.

        Compiled with metrics, it appends the best class of each example: a step on JAX computes
        metrics where it has no class vectors. Up to 2**24 a float32 holds it exactly.
        """
        features = self._products(inputs, training)
        if not self._guesses:
            return features
        mask = keras_internals.mask_of(features)
        flat = ops.stop_gradient(ops.reshape(features, (-1, features.shape[-1])))
        with keras_internals.no_autocast():
            scores, best = self._chunks().best(flat)
        best = ops.cast(ops.where(scores == scores, best, -1), "float32")
        best = ops.reshape(best, (*ops.shape(features)[:-1], 1))
        features = ops.concatenate([features, best], axis=-1)
        if mask is not None:
            keras_internals.set_mask(features, mask)
        return features

    def _products(self, inputs: Any, training: bool | None) -> Any:
        head, given = self._head(), self._features(inputs, training=training)
        features = ops.cast(given, "float32")
        ones = ops.ones_like(features[..., :1])
        if not isinstance(head, CosineDense):
            features = ops.concatenate([features, ones], axis=-1)
        elif head.use_bias:
            features = head.unit_features(features)
        else:
            features = ops.concatenate([head.unit_features(features), 0.0 * ones], axis=-1)
        mask = keras_internals.mask_of(given)
        if mask is not None:
            keras_internals.set_mask(features, mask)
        return features

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        *,
        metrics: Any = None,
        weighted_metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """Compiles as Keras does, with a loss and metrics that need no array of all scores."""
        # A subclass with mathematics of its own inherits what is not its own.
        given_by = [
            next((each for each in type(loss).__mro__ if name in vars(each)), None)
            for name in ("of_label_and_rest", "call")
        ]
        if given_by[0] is None or given_by[0] is not given_by[1]:
            raise ValueError(
                "`loss` must be LDAM, LogitAdjusted or CrossEntropy of keras_ldam; others need "
                f"the scores of all classes at once. Received: {loss!r}"
            )
        given = keras.tree.flatten([metrics, weighted_metrics])
        for metric in (metric for metric in given if metric is not None):
            if not isinstance(metric, ClassErrors):
                raise ValueError(
                    "Metrics must be ClassErrors of keras_ldam; others need the scores of all "
                    f"classes at once. Received: {metric!r}"
                )
            if len(metric.counts) != self._head().units:
                raise ValueError(
                    f"{metric.name}: `counts` must have one entry for each of the "
                    f"{self._head().units} classes. Received: {len(metric.counts)}"
                )
        self._guesses = any(metric is not None for metric in given)
        self._draws = None
        if self.negatives is not None:
            counts, size = loss.counts, self._head().units
            if np.shape(counts) != (size,):  # None, or an error of the first step.
                counts = np.ones(size)
            self._draws = Negatives(class_chances(counts, self.power), self.negatives)
        super().compile(
            optimizer, loss, metrics=metrics, weighted_metrics=weighted_metrics, **kwargs
        )

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles the model as it was when saved.

        Keras does so only for classes that do not override `compile`.
        """
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    def _chunks(self, *, training: bool = False) -> Chunks:
        head = self._head()
        bias = ops.zeros((head.units,), "float32") if not head.use_bias else head.bias
        epsilon = head.epsilon if isinstance(head, CosineDense) else None
        if self._draws is None or not training:
            return Chunks(head.kernel, bias, epsilon, self.chunk_size)
        uniform = keras.random.uniform((self._draws.number,), dtype="float32", seed=self._seeds)
        drawn = self._draws.draw(uniform)
        return SampledChunks(head.kernel, bias, epsilon, self.chunk_size, *drawn)

    @property
    def rare_share(self) -> float:
        """The part of the negatives that classes with fewer than 20 examples are expected to have.

        Of a compiled model with `negatives` and a loss with counts.
        """
        if self._draws is None or getattr(self.loss, "counts", None) is None:
            raise ValueError("`rare_share` needs `negatives`, and a compiled loss with `counts`.")
        few = class_counts.shot_groups(self.loss.counts)["few"]
        return float(self._draws.expected[few].sum() / self._draws.number)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Returns the loss of features."""
        if self._guesses:
            y_pred = _part(y_pred, slice(None, -1))
        with in_chunks(self._chunks(training=training)):
            return super().compute_loss(x, y, y_pred, sample_weight, training=training)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Updates the metrics by the best class of each example."""
        if self._guesses:
            y_pred = _part(y_pred, slice(-1, None), "int32")
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Returns all scores, as the wrapped model does."""
        return self.model.predict(*args, **kwargs)

    def best(self, x: Any, k: int = 1, *, batch_size: int = 32) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k best scores of each example and their classes, best first.

        Args:
            x: Examples, an array.
            k: How many, 1 to `num_classes`.
            batch_size: Examples per batch.

        Returns:
            Scores, float32, and classes, int32, both of shape `(examples, k)`.

        Raises:
            ValueError: if `k` is out of range.
        """
        class_counts.check_whole("k", k, 1)
        class_counts.check_whole("batch_size", batch_size, 1)
        if not np.shape(x) or not len(x):
            raise ValueError(f"`x` must be an array of examples. Received: {class_counts.shown(x)}")
        chunks = self._chunks()
        if k > chunks.num_classes:
            raise ValueError(f"`k` must be at most {chunks.num_classes}. Received: k={k}")
        found = []
        for start in range(0, len(x), int(batch_size)):
            batch = x[start : start + int(batch_size)]
            pair = chunks.best(self._products(batch, False), int(k))
            found.append([ops.convert_to_numpy(part) for part in pair])
        scores, classes = zip(*found, strict=True)
        return np.concatenate(scores), np.concatenate(classes)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal wrapper."""
        model = keras.saving.serialize_keras_object(self.model)
        drawn = {name: getattr(self, name) for name in ("negatives", "power", "seed")}
        own = {"model": model, "chunk_size": self.chunk_size, **drawn}
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> ChunkedTraining:
        """Makes a wrapper from what `get_config` returned."""
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects)
        return cls(**{**config, "model": model})


def _part(y_pred: Any, columns: slice, dtype: str = "float32") -> Any:
    """Some of the last axis, with the mask of the whole."""
    part, mask = ops.cast(y_pred[..., columns], dtype), keras_internals.mask_of(y_pred)
    if mask is not None:
        keras_internals.set_mask(part, mask)
    return part


def _check_head(head: Any) -> None:
    if head.units > _MOST_CLASSES:
        raise ValueError(
            f"`model` must have at most 2**24 classes. Received: {head.units:,} classes"
        )
    if head.variable_dtype != "float32":
        raise ValueError(
            "The class vectors must be float32; give the head a policy such as mixed_bfloat16. "
            f"Received: {head.variable_dtype}"
        )
    if head.activity_regularizer is not None:
        raise ValueError(
            f"The head {head.name!r} must have no `activity_regularizer`, which needs the scores "
            "of all classes at once."
        )


def _head_of(model: keras.Model) -> tuple[Any, Any]:
    """Returns the layer that scores come out of, and what goes into it."""
    outputs: Any = getattr(model, "outputs", None) or ()
    head: Any = keras_internals.operation_of(outputs[0]) if len(outputs) == 1 else None
    linear = type(head) is keras.layers.Dense and head.activation is keras.activations.linear
    if not (linear or isinstance(head, CosineDense)):
        raise ValueError(
            "`model` must be a functional or sequential model that is built and ends in a "
            f"CosineDense, or in a Dense without an activation. Received: {model!r}"
        )
    (features,) = keras_internals.arguments_of(outputs[0])  # Its first call may be another one.
    return head, features
