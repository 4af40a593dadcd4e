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


@keras.saving.register_keras_serializable(package="keras_ldam")
class AdversarialTraining(keras.Model):
    """Trains a model on each batch twice: as it is, and with its embedded words perturbed.

    A step minimizes ℓ(v) + ℓ(v + r). Here v are the embedded words of an example, and
    r = ε g / ‖g‖₂, with g = ∂ℓ/∂v over the whole sequence, is the perturbation of length ε that
    raises the loss most, to first order. It regularizes networks that memorize rare classes: on
    long-tailed texts there are few of them to learn the words from. A step costs two forward and
    two backward passes, and nothing changes at prediction.

    The wrapped model shares its variables, so train the wrapper and then use, save or export the
    model itself. It must be functional or sequential; every `keras.layers.Embedding` in it, at any
    depth, is perturbed by a vector of its own of length ε. Word vectors have no scale of their own,
    and a network could escape any ε by growing them: choose ε against their norm, try 0.5 to 1
    times the length of a typical word vector first, and look at the held-out error.

    `loss` and the metrics of `fit` are those of the batch as it is, and so are the moving
    statistics of batch normalization. Losses that layers add count in both passes.

    Args:
        model: A functional or sequential model, built, with an `Embedding` layer.
        epsilon: Length ε of a perturbation, in the units of the word vectors, a finite number of at
            least 0. With 0 a step trains on the batch twice, with other dropout.
        **kwargs: Further arguments of `keras.Model`.

    Raises:
        ValueError: if `epsilon` is not as described, or `model` is subclassed or has no embedding.

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

    def __init__(self, model: keras.Model, *, epsilon: float, **kwargs: Any) -> None:
        class_counts.check_range("epsilon", epsilon, 0, 1e6)
        perturbed = _perturbable(model)
        super().__init__(**kwargs)
        self.model, self.epsilon = model, float(epsilon)
        # As a function: as an attribute, its layers would be saved a second time.
        self._forward = perturbed.__call__
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns what the wrapped model returns."""
        return self._forward(inputs, training=training)

    def train_step(self, *args: Any) -> Any:
        """Trains on one batch, as it is and perturbed; returns the metrics so far."""
        if keras.backend.backend() == "tensorflow":
            return self._tensorflow_step(*args)
        if keras.backend.backend() == "torch":
            return self._torch_step(*args)
        return super().train_step(*args)  # JAX: see `compute_loss_and_updates`.

    def _tensorflow_step(self, data: Any) -> dict[str, Any]:
        import tensorflow as tf

        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        variables = self.trainable_variables

        def one_pass(shifts: list[Any] | None) -> tuple[Any, Any, list[Any], list[Any]]:
            with tf.GradientTape() as tape, _passing(shifts, tape.watch) as embedded:
                y_pred = self(x, training=True)
                loss = self.compute_loss(x, y, y_pred, sample_weight, training=True)
                scaled = self.optimizer.scale_loss(loss)
            sources = [*variables, *embedded] if shifts is None else variables
            gradients = tape.gradient(scaled, sources, unconnected_gradients="zero")
            # Dense, so that those of an embedding can be added.
            gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
            return y_pred, loss, gradients[: len(variables)], gradients[len(variables) :]

        y_pred, loss, gradients, slopes = one_pass(None)
        with self._statistics_kept():
            *_, more, _ = one_pass(self._shifts(slopes))
        self.optimizer.apply([a + b for a, b in zip(gradients, more, strict=True)], variables)
        # Keras has divided the loss by the number of replicas.
        loss = loss * tf.distribute.get_strategy().num_replicas_in_sync
        keras_internals.loss_metric(self).update_state(loss, sample_weight=_size(x))
        return self.compute_metrics(x, y, y_pred, sample_weight)

    def _torch_step(self, data: Any) -> dict[str, Any]:
        import torch

        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self.zero_grad()

        def one_pass(shifts: list[Any] | None) -> tuple[Any, Any, list[Any]]:
            with _passing(shifts, _retain_gradient) as embedded:
                y_pred = self(x, training=True)
                loss = self.compute_loss(x, y, y_pred, sample_weight, training=True)
                self.optimizer.scale_loss(loss).backward()
            return y_pred, loss, [vectors.grad for vectors in embedded]

        y_pred, loss, slopes = one_pass(None)
        with self._statistics_kept():
            one_pass(self._shifts(slopes))  # PyTorch adds up the gradients.
        with torch.no_grad():
            variables = self.trainable_variables
            self.optimizer.apply([v.value.grad for v in variables], variables)
        keras_internals.loss_metric(self).update_state(loss, sample_weight=_size(x))
        return self.compute_metrics(x, y, y_pred, sample_weight)

    def compute_loss_and_updates(
        self, trainable_variables: Any, non_trainable_variables: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """What Keras' step on JAX differentiates, `(loss, updates)`.

        In training it returns the loss of the batch as it is, plus Σ ⟨G, θ - θ⟩, in which the
        gradient G of both passes and one of the two θ are constants: the value is that loss, and
        its gradient is G. Everything else in the step is Keras' own.
        """
        once = super().compute_loss_and_updates
        if not kwargs.get("training", False):
            return once(trainable_variables, non_trainable_variables, *args, **kwargs)
        import jax

        variables = jax.lax.stop_gradient(trainable_variables)

        def run(variables: Any, shifts: Any, state: Any) -> Any:
            with _passing(shifts):
                return once(variables, state, *args, **kwargs)

        with _passing(None) as embedded:
            jax.eval_shape(lambda: once(variables, non_trainable_variables, *args, **kwargs))
        zeros = [jax.numpy.zeros(vectors.shape, vectors.dtype) for vectors in embedded]
        (loss, updates), (gradients, slopes) = jax.value_and_grad(run, (0, 1), has_aux=True)(
            variables, zeros, non_trainable_variables
        )
        unscaled, y_pred, state, metrics = updates
        (_, (_, _, after, _)), more = jax.value_and_grad(run, has_aux=True)(
            variables, self._shifts(slopes), state
        )
        # Random states go on; statistics are those of the batch as it is.
        state = [
            kept if keras.backend.is_float_dtype(kept.dtype) else new
            for kept, new in zip(state, after, strict=True)
        ]
        for variable, constant, first, second in zip(
            trainable_variables, variables, gradients, more, strict=True
        ):
            loss = loss + ops.sum((first + second) * (variable - constant))
        return loss, (unscaled, y_pred, state, metrics)

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

    @contextlib.contextmanager
    def _statistics_kept(self) -> Iterator[None]:
        """Within it, changes to the moving statistics do not last."""
        statistics = [
            v for v in self.non_trainable_variables if keras.backend.is_float_dtype(v.dtype)
        ]
        before = [ops.copy(v.value) for v in statistics]
        yield
        for variable, value in zip(statistics, before, strict=True):
            variable.assign(value)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal wrapper."""
        model = keras.saving.serialize_keras_object(self.model)
        return {**super().get_config(), "model": model, "epsilon": self.epsilon}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> AdversarialTraining:
        """Makes a wrapper from what `get_config` returned."""
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects)
        return cls(**{**config, "model": model})


class _Perturbed(keras.layers.Layer):
    """An embedding whose output the passes of a step observe, and shift."""

    def __init__(self, embedding: keras.layers.Embedding) -> None:
        super().__init__(name=embedding.name, dtype=embedding.dtype_policy)
        self.embedding = embedding
        self.built = True

    def call(self, inputs: Any) -> Any:
        vectors = self.embedding(inputs)
        return vectors if _here.act is None else _here.act(vectors)

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
    return perturbed


def _retain_gradient(vectors: Any) -> Any:
    if not vectors.requires_grad:  # Where the embedding is frozen.
        vectors.requires_grad_(True)
    vectors.retain_grad()
    return vectors


def _size(x: Any) -> Any:
    return ops.shape(next(part for part in keras.tree.flatten(x) if part is not None))[0]
