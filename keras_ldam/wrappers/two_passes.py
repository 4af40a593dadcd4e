"""Training steps that take two gradients of a batch: the second at a place that the first names."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from keras_ldam import keras_internals


class TwoPasses(keras.Model):
    """Base of the wrappers whose step takes two forward and two backward passes.

    The first pass is at the batch as it is. From its gradients a subclass derives what is moved in
    the second, the weights or tensors inside the model, and it says how the gradients of both make
    the step. `loss` and the metrics of `fit` are those of the first pass, and so are the moving
    statistics of batch normalization.

    The wrapped model shares its variables, so train the wrapper and then use, save or export the
    model itself.

    Args:
        model: A built model.
        forward: What is called in its place, with layers that share its variables.
        **kwargs: Further arguments of `keras.Model`.
    """

    moves_weights = True
    """Whether weights move in the second pass, for which the gradient of the whole batch counts."""

    def __init__(self, model: keras.Model, forward: Callable[..., Any], **kwargs: Any) -> None:
        super().__init__(**{"autocast": False, **kwargs})  # The model casts its inputs itself.
        self.model = model
        # As a function: as an attribute, its layers would be saved a second time.
        self._forward = forward
        self.built = True

    def _passing(
        self, shifts: list[Any] | None, observe: Callable[[Any], Any] | None = None
    ) -> contextlib.AbstractContextManager[list[Any]]:
        """Within it, tensors inside the model are shifted, or observed where there are no shifts.

        It yields the observed ones, whose gradients `_second` gets. By default there are none.
        """
        return contextlib.nullcontext([])

    def _second(
        self, gradients: list[Any], slopes: list[Any]
    ) -> tuple[list[Any] | None, list[Any]]:
        """Returns by what weights move in the second pass (None: not at all), and the shifts.

        Args:
            gradients: Those of the first pass for the weights.
            slopes: Those for what was observed.
        """
        raise NotImplementedError

    def _total(self, first: Any, second: Any) -> Any:
        """Returns the gradient that a weight steps by, from those of the two passes."""
        raise NotImplementedError

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns what the wrapped model returns."""
        return self._forward(inputs, training=training)

    def train_step(self, *args: Any) -> Any:
        """Trains on one batch, as it is and perturbed; returns the metrics so far."""
        if keras.backend.backend() == "tensorflow":
            return self._tensorflow_step(*args)
        if keras.backend.backend() == "torch":
            step = self._torch_step
            if self.jit_compile:
                import torch

                # Its compiler takes minutes over two backward passes, and then fails.
                step = torch.compiler.disable(step)
            return step(*args)
        return super().train_step(*args)  # JAX: see `compute_loss_and_updates`.

    def _tensorflow_step(self, data: Any) -> dict[str, Any]:
        import tensorflow as tf

        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if self.moves_weights and replicas > 1:
            raise ValueError(
                f"{type(self).__name__} moves the weights within a step, each replica by its own "
                "gradient: put keras_ldam.distribution.ReplicatedStep before it among the bases, "
                "or use keras_ldam.distribution.ReplicatedSharpnessAwareTraining."
            )
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        variables = self.trainable_variables

        def one_pass(shifts: list[Any] | None) -> tuple[Any, Any, list[Any], list[Any]]:
            with tf.GradientTape() as tape, self._passing(shifts, tape.watch) as observed:
                y_pred = self(x, training=True)
                loss = self.compute_loss(x, y, y_pred, sample_weight, training=True)
                scaled = self.optimizer.scale_loss(loss)
            sources = [*variables, *observed] if shifts is None else variables
            # Dense, so that those of an embedding can be added.
            gradients = dense(tape.gradient(scaled, sources), sources)
            return y_pred, loss, gradients[: len(variables)], gradients[len(variables) :]

        y_pred, loss, gradients, slopes = one_pass(None)
        moves, shifts = self._second(gradients, slopes)
        with self._statistics_kept(), self._moved(moves):
            *_, more, _ = one_pass(shifts)
        total = [self._total(*pair) for pair in zip(gradients, more, strict=True)]
        self.optimizer.apply(total, variables)
        # Keras has divided the loss by the number of replicas.
        keras_internals.loss_metric(self).update_state(loss * replicas, sample_weight=_size(x))
        return self.compute_metrics(x, y, y_pred, sample_weight)

    def _torch_step(self, data: Any) -> dict[str, Any]:
        import torch

        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        variables = self.trainable_variables

        def one_pass(shifts: list[Any] | None) -> tuple[Any, Any, list[Any], list[Any]]:
            self.zero_grad()
            with self._passing(shifts, _retain_gradient) as observed:
                y_pred = self(x, training=True)
                loss = self.compute_loss(x, y, y_pred, sample_weight, training=True)
                self.optimizer.scale_loss(loss).backward()
            gradients = [
                torch.zeros_like(v.value) if v.value.grad is None else v.value.grad.clone()
                for v in variables
            ]
            observed = observed if shifts is None else []
            slopes = [torch.zeros_like(t) if t.grad is None else t.grad for t in observed]
            return y_pred, loss, gradients, slopes

        y_pred, loss, gradients, slopes = one_pass(None)
        moves, shifts = self._second(gradients, slopes)
        with self._statistics_kept(), self._moved(moves):
            *_, more, _ = one_pass(shifts)
        with torch.no_grad():
            total = [self._total(*pair) for pair in zip(gradients, more, strict=True)]
            self.optimizer.apply(total, variables)
        keras_internals.loss_metric(self).update_state(loss, sample_weight=_size(x))
        return self.compute_metrics(x, y, y_pred, sample_weight)

    def compute_loss_and_updates(
        self, trainable_variables: Any, non_trainable_variables: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """What Keras' step on JAX differentiates, `(loss, updates)`.

        In training it returns the loss of the batch as it is, plus Σ ⟨G, θ - θ⟩, in which the
        total gradient G and one of the two θ are constants: the value is that loss, and
        its gradient is G. Everything else in the step is Keras' own.
        """
        once = super().compute_loss_and_updates
        if not kwargs.get("training", False):
            return once(trainable_variables, non_trainable_variables, *args, **kwargs)
        import jax

        variables = jax.lax.stop_gradient(trainable_variables)

        def run(variables: Any, shifts: Any, state: Any) -> Any:
            with self._passing(shifts):
                return once(variables, state, *args, **kwargs)

        with self._passing(None) as observed:
            jax.eval_shape(lambda: once(variables, non_trainable_variables, *args, **kwargs))
        zeros = [jax.numpy.zeros(tensor.shape, tensor.dtype) for tensor in observed]
        (loss, updates), (gradients, slopes) = jax.value_and_grad(run, (0, 1), has_aux=True)(
            variables, zeros, non_trainable_variables
        )
        unscaled, y_pred, state, metrics = updates
        moves, shifts = self._second(gradients, slopes)
        moved = variables
        if moves is not None:
            moved = [v + move for v, move in zip(variables, moves, strict=True)]
        (_, (_, _, after, _)), more = jax.value_and_grad(run, has_aux=True)(moved, shifts, state)
        # Random states go on; statistics are those of the batch as it is.
        state = [
            kept if keras.backend.is_float_dtype(kept.dtype) else new
            for kept, new in zip(state, after, strict=True)
        ]
        for variable, constant, first, second in zip(
            trainable_variables, variables, gradients, more, strict=True
        ):
            loss = loss + ops.sum(self._total(first, second) * (variable - constant))
        return loss, (unscaled, y_pred, state, metrics)

    @contextlib.contextmanager
    def _moved(self, moves: list[Any] | None) -> Iterator[None]:
        """Within it, the weights are moved."""
        if moves is None:
            yield
            return
        variables = self.trainable_variables
        before = [ops.copy(v.value) for v in variables]
        for variable, value, move in zip(variables, before, moves, strict=True):
            variable.assign(value + move)
        try:
            yield
        finally:
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)

    @contextlib.contextmanager
    def _statistics_kept(self) -> Iterator[None]:
        """Within it, changes to the moving statistics and to metrics do not last."""
        statistics = [
            v for v in self.non_trainable_variables if keras.backend.is_float_dtype(v.dtype)
        ]
        statistics += [v for metric in self.metrics for v in metric.variables]
        before = [ops.copy(v.value) for v in statistics]
        try:
            yield
        finally:
            for variable, value in zip(statistics, before, strict=True):
                variable.assign(value)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal wrapper."""
        model = keras.saving.serialize_keras_object(self.model)
        return {**super().get_config(), "model": model}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> TwoPasses:
        """Makes a wrapper from what `get_config` returned."""
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects)
        return cls(**{**config, "model": model})


def dense(gradients: Any, sources: Any) -> list[Any]:
    """Returns TensorFlow's gradients as dense tensors, zeros where nothing depends on a source."""
    import tensorflow as tf

    return [
        ops.zeros_like(source) if gradient is None else tf.convert_to_tensor(gradient)
        for gradient, source in zip(gradients, sources, strict=True)
    ]


def _retain_gradient(tensor: Any) -> Any:
    if not tensor.requires_grad:  # Where what gives it is frozen.
        tensor.requires_grad_(True)
    tensor.retain_grad()
    return tensor


def _size(x: Any) -> Any:
    return ops.shape(next(part for part in keras.tree.flatten(x) if part is not None))[0]
