"""Adversarial training of models that begin with an embedding."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from keras_ldam import counts as class_counts
from keras_ldam import keras_internals
from keras_ldam.wrappers.two_passes import TwoPasses


@keras.saving.register_keras_serializable(package="keras_ldam")
class AdversarialTraining(TwoPasses):
    """Trains a model on each batch twice: as it is, and with its embedded words perturbed.

    A step minimizes ℓ(v) + ℓ(v + r). Here v are the embedded words of an example, and
    r = ε g / ‖g‖₂, with g = ∂ℓ/∂v over the whole sequence, is the perturbation of length ε that
    raises the loss most, to first order. It regularizes networks that memorize rare classes: on
    long-tailed texts there are few of them to learn the words from. A step costs two forward and
    two backward passes, and nothing changes at prediction.

    The wrapped model shares its variables, so train the wrapper and then use, save or export the
    model itself. It must be functional or sequential; every `keras.layers.Embedding` among its
    layers, or those of a model inside it, is perturbed by a vector of its own of length ε.

    Choose ε against the length of the word vectors: try 0.5 to 1 times that of a typical one first,
    and look at the held-out error. A network could escape any ε by growing its word vectors, which
    have no scale of their own.

    Under a `tf.distribute` strategy use `keras_ldam.distribution.ReplicatedAdversarialTraining`; on
    JAX several devices need nothing more.

    `loss` and the metrics of `fit` are those of the batch as it is, and so are the moving
    statistics of batch normalization. Losses that layers add count in both passes.

    Args:
        model: A functional or sequential model, built, with an `Embedding` layer.
        epsilon: Length ε of a perturbation, in the units of the word vectors, a finite number of at
            least 0. With 0 a step trains on the batch twice, with other dropout.
        **kwargs: Further arguments of `keras.Model`.

    Raises:
        ValueError: if `epsilon` is not as described, or `model` is subclassed, has no embedding, or
            has one inside another layer.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((None,), dtype="int32"),
    ...     keras.layers.Embedding(100, 8),
    ...     keras.layers.GlobalAveragePooling1D(),
    ...     keras_ldam.CosineDense(2),
    ... ])
    >>> trained = AdversarialTraining(model, epsilon=0.5)
    >>> trained.compile("adam", loss=keras_ldam.LDAM([3, 1]))
    >>> import numpy as np
    >>> words, labels = np.ones((4, 5), "int32"), np.array([0, 0, 0, 1])
    >>> history = trained.fit(words, labels, verbose=0)
    >>> model.predict(words, verbose=0).shape
    (4, 2)

    References:
        Miyato, Dai and Goodfellow, "Adversarial Training Methods for Semi-Supervised Text
        Classification", 2017, equation 5. There the word vectors are normalized over the
        vocabulary; here they are left alone.
    """

    moves_weights = False

    def __init__(self, model: keras.Model, *, epsilon: float, **kwargs: Any) -> None:
        class_counts.check_range("epsilon", epsilon, 0, 1e6)
        perturbed = _perturbable(model)
        super().__init__(model, perturbed.__call__, **kwargs)
        self.epsilon = float(epsilon)

    def _passing(
        self, shifts: list[Any] | None, observe: Callable[[Any], Any] | None = None
    ) -> contextlib.AbstractContextManager[list[Any]]:
        return _passing(shifts, observe)

    def _second(self, gradients: list[Any], slopes: list[Any]) -> tuple[None, list[Any]]:
        return None, self._shifts(slopes)

    def _total(self, first: Any, second: Any) -> Any:
        return first + second

    def _shifts(self, slopes: list[Any]) -> list[Any]:
        """Returns ε g / ‖g‖₂ for each example; 0 where the gradient is 0."""
        shifts = []
        for slope in slopes:
            axes = tuple(range(1, len(slope.shape)))
            g = ops.cast(slope, "float32")
            # Divided by the largest first, so that no square is lost.
            g = g / ops.maximum(ops.max(ops.abs(g), axis=axes, keepdims=True), 1e-37)
            length = ops.sqrt(ops.sum(ops.square(g), axis=axes, keepdims=True))
            shifts.append(ops.cast(self.epsilon * g / ops.maximum(length, 1e-37), slope.dtype))
        return shifts

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal wrapper."""
        return {**super().get_config(), "epsilon": self.epsilon}


class _Perturbed(keras.layers.Layer):
    """An embedding whose output the passes of a step observe, and shift."""

    def __init__(self, embedding: keras.layers.Embedding) -> None:
        # As the embedding itself: rounding would turn ids of words into others.
        super().__init__(name=embedding.name, dtype=embedding.dtype_policy, autocast=False)
        self.embedding = embedding
        self.built = True

    def call(self, inputs: Any, **kwargs: Any) -> Any:
        vectors = self.embedding(inputs, **kwargs)
        # Reversed, one that is also the head gives scores.
        act = None if kwargs.get("reverse") else _here.act
        return vectors if act is None else act(vectors)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        return self.embedding.compute_mask(inputs, previous_mask)


class _Here(threading.local):
    """What is done to embedded words; each replica of a strategy is traced in its own thread."""

    act: Callable[[Any], Any] | None = None


_here = _Here()


@contextlib.contextmanager
def _passing(
    shifts: list[Any] | None, observe: Callable[[Any], Any] | None = None
) -> Iterator[list[Any]]:
    """Within it, embedded words are shifted, or observed and collected where there are no shifts.

    The collected ones and the shifts are in the order of the calls.
    """
    collected: list[Any] = []

    def act(vectors: Any) -> Any:
        if shifts is None and observe is not None:
            observed = observe(vectors)
            vectors = vectors if observed is None else observed
        collected.append(vectors)
        return vectors if shifts is None else vectors + shifts[len(collected) - 1]

    before, _here.act = _here.act, act
    try:
        yield collected
    finally:
        _here.act = before


def _perturbable(model: keras.Model) -> keras.Model:
    """Returns the model, on the same layers, with its embeddings in `_Perturbed`."""
    if not getattr(model, "inputs", None):
        raise ValueError(
            "`model` must be a functional model, or a sequential one that is built. Received: "
            f"{model!r}"
        )
    found = []

    def wrapped(layer: Any) -> Any:
        if isinstance(layer, keras.layers.Embedding):
            found.append(layer)
            return _Perturbed(layer)
        return layer

    # Of a new model: a compiled one would be compiled again.
    sequential = isinstance(model, keras.Sequential)
    ends = (model.inputs[0], model.outputs[0]) if sequential else (model.input, model.output)
    plain = keras.Model(*ends)
    perturbed = keras.models.clone_model(plain, clone_function=wrapped, recursive=True)
    if not found:
        raise ValueError(
            "`model` must have a keras.layers.Embedding layer, whose output is perturbed. "
            f"Received: {model!r}"
        )
    inside = [
        layer.name
        for layer in keras_internals.layers_of(plain)
        if isinstance(layer, keras.layers.Embedding) and not any(layer is each for each in found)
    ]
    if inside:
        raise ValueError(
            "Every keras.layers.Embedding of `model` must be one of its layers, or of a model "
            f"inside it, to be perturbed. Received: {inside[0]!r} inside another layer"
        )
    return perturbed
