"""A training step for several replicas that is exact and that XLA can compile."""

from __future__ import annotations

import contextlib
from typing import Any

import keras

from keras_ldam import extras, hardware, keras_internals, losses
from keras_ldam.distribution.strategies import is_multiworker
from keras_ldam.wrappers import AdversarialTraining, SharpnessAwareTraining, TwoPasses
from keras_ldam.wrappers.averaging import trained_batch_norm
from keras_ldam.wrappers.two_passes import dense

with extras.needed("export", by="training on several devices"):
    import tensorflow as tf

_Mixin: Any = object
"""`object` at run time; `Any`, so that the mixin may use what the Keras model beside it has."""


class ReplicatedStep(_Mixin):
    """Mixin for a Keras model: training steps for `tf.distribute` that are exact and compilable.

    Put it before `keras.Model` among the bases of your model, or use `ReplicatedModel`. Create
    model, loss and optimizer inside `strategy.scope()`, then call `compile` and `fit` as usual,
    with batches of the global size. It differs from Keras' own step in the following:

    - Results do not depend on how the global batch is split. Each replica's loss and gradients
      count by its share of the batch: by the sum of its weights for the losses of `keras_ldam`
      (Σ w ℓ / Σ w over all replicas), for others by what Keras divides the loss by, such as the
      number of examples that are not masked. Neither a last partial batch, nor a class that one
      replica does not see, nor an empty share changes the weights beyond rounding. There are two
      exceptions. Batch normalization normalizes each share by itself; its moving statistics are
      averaged over the replicas before validation and at the end of each epoch, before other
      callbacks. And `LDAM(gradual=True)` computes from each share how much of the margins it
      demands.
    - `jit_compile=True` compiles the forward and backward pass with XLA. All-reduce, optimizer and
      metrics stay outside, because XLA does not accept variables of several devices in one
      cluster: Keras' own step fails under a strategy. `"auto"` compiles if there is an
      accelerator; on CPUs XLA is slower, see `benchmarks/README.md`.
    - Gradients are clipped (`clipnorm`, `global_clipnorm`, `clipvalue`) after they are summed;
      Keras clips each replica's part.
    - Each replica draws its own dropout and augmentation; with Keras all draw the same.
    - `fit` and `evaluate` work under `MultiWorkerMirroredStrategy`.

    `predict` is Keras' own; under a strategy pass a `tf.data.Dataset` to it. The loss must be
    reduced to a mean. With several losses or outputs, shares count by their number of examples; the
    logged loss of a single output is a plain mean over replicas, and only `loss` is exact.
    """

    def compile(self, *args: Any, jit_compile: bool | str = "auto", **kwargs: Any) -> None:
        """Configures the model for training.

        Args:
            *args: As in `keras.Model.compile`.
            jit_compile: Whether XLA compiles the forward and backward pass; `"auto"`: if there is
                an accelerator and every layer supports it. Defaults to `"auto"`.
            **kwargs: As in `keras.Model.compile`.

        Raises:
            ValueError: for a loss that is not reduced to a mean, and for the loss scaling of
                `mixed_float16` over several replicas, which was seen to diverge.
        """
        # Keras would compile the whole step, optimizer and all-reduce included.
        super().compile(*args, jit_compile=False, **kwargs)
        self._asked_jit_compile = jit_compile
        for loss in keras.tree.flatten(self.loss):
            reduction = getattr(loss, "reduction", "sum_over_batch_size")
            if reduction not in ("sum_over_batch_size", "mean", "mean_with_sample_weight"):
                raise ValueError(
                    "`loss` must be reduced to a mean over the batch, by "
                    "'mean_with_sample_weight' or 'sum_over_batch_size'. "
                    f"Received: reduction={reduction!r}"
                )
        scales = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        if scales and self.distribute_strategy.num_replicas_in_sync > 1:
            raise ValueError(
                "The loss scaling of mixed_float16 is not supported over several replicas; use "
                "mixed_bfloat16 or float32. Received: optimizer=LossScaleOptimizer"
            )
        if jit_compile == "auto":
            jit_compile = bool(hardware.accelerators()) and all(
                layer.supports_jit for layer in keras_internals.layers_of(self)
            )
        self.pass_is_compiled = bool(jit_compile)
        self._pass = self._forward_and_backward
        if self.pass_is_compiled:
            self._pass = tf.function(
                self._forward_and_backward,
                jit_compile=True,
                autograph=False,
                reduce_retracing=True,
            )

    def get_compile_config(self) -> dict[str, Any] | None:
        """Returns the arguments of `compile`, with `jit_compile` as it was passed."""
        config = super().get_compile_config()
        return config and {**config, "jit_compile": self._asked_jit_compile}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles the model as it was when saved.

        Keras does so only for classes that do not override `compile`.
        """
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built and self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    def fit(self, *args: Any, callbacks: Any = None, **kwargs: Any) -> keras.callbacks.History:
        """Trains as `keras.Model.fit` does; `callbacks` is one callback or a list, by keyword."""
        strategy = self.distribute_strategy

        @tf.function(autograph=False)
        def average() -> None:
            strategy.run(self._average_statistics)

        @tf.function(autograph=False)
        def separate() -> None:
            strategy.run(self._separate_seeds)

        first = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda *_: average(),
            on_test_begin=lambda *_: average(),  # Validation comes before the end of the epoch.
        )
        # At each epoch, and after the other callbacks, one of which may have set the seeds.
        last = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: separate())
        with keras_internals.without_autotuning():
            return super().fit(
                *args, callbacks=[first, *keras.tree.flatten(callbacks or []), last], **kwargs
            )

    def _separate_seeds(self) -> None:
        """Gives each replica its own random seeds, numbered from those of the first replica."""
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        weights = {id(weight) for weight in self.weights}
        # By Keras' definition the variables that are no weights are the states of seed generators.
        for variable in (v for v in self.variables if id(v) not in weights):
            state = tf.identity(variable.value)
            first = _sum_over_replicas(tf.where(replica == 0, state, 0))
            variable.assign(first + tf.cast([replica, 0], state.dtype))

    def _average_statistics(self) -> None:
        variables = [
            v for v in self.non_trainable_variables if keras.backend.is_float_dtype(v.dtype)
        ]
        if variables:
            # Identities: a variable's value has no device, and the sum is computed by device.
            local = [tf.identity(v.value) for v in variables]
            means = _over_replicas(tf.distribute.ReduceOp.MEAN, local)
            for variable, mean in zip(variables, means, strict=True):
                variable.assign(mean)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Trains on this replica's share of a batch; returns the metrics so far."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        size = _size(x)
        padded = _at_least_one(x, y, sample_weight, size)
        moving = [
            v
            for layer in trained_batch_norm(self)
            for v in (layer.moving_mean, layer.moving_variance)
        ]
        statistics = [(v, tf.identity(v.value)) for v in moving]
        y_pred, mask, loss, gradients, slopes = self._pass(*padded)
        for variable, before in statistics:  # The example that pads an empty share is none.
            variable.assign(tf.where(size > 0, variable.value, before))
        y_pred = _first(size, y_pred, mask)

        share = self._record_loss(loss, y, y_pred, sample_weight, size)
        gradients = _times(share, gradients)
        if isinstance(self, TwoPasses):
            # All replicas move alike, by the gradient of the whole batch.
            whole = _sum_over_replicas(gradients) if self.moves_weights else gradients
            *_, more, _ = self._pass(*padded, self._second(whole, slopes))
            pairs = zip(gradients, _times(share, more), strict=True)
            gradients = [self._total(first, second) for first, second in pairs]
        if _clips(self.optimizer) and _replicas() > 1:
            gradients = self._clipped(gradients)
        self.optimizer.apply(gradients, self.trainable_variables)
        return self._over_workers(self.compute_metrics(x, y, y_pred, sample_weight))

    def test_step(self, data: Any) -> dict[str, Any]:
        """Evaluates this replica's share of a batch; returns the metrics so far."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        size = _size(x)
        x_padded, y_padded, weight_padded = _at_least_one(x, y, sample_weight, size)
        y_pred = self(x_padded, training=False)
        loss = self._local_loss(x_padded, y_padded, y_pred, weight_padded, training=False)
        y_pred = _first(size, y_pred, _mask_of(y_pred))
        self._record_loss(loss, y, y_pred, sample_weight, size)
        return self._over_workers(self.compute_metrics(x, y, y_pred, sample_weight))

    def _forward_and_backward(self, x: Any, y: Any, sample_weight: Any, second: Any = None) -> Any:
        """Returns scores, their mask, the mean loss over this replica's share, and its gradients.

        Last come the gradients for what the first of two passes observes. With `second`, the moves
        and shifts of the second pass, no variable changes but random states.
        """
        variables = places = self.trainable_variables
        scope: Any = contextlib.nullcontext()
        moves, shifts = second or (None, None)
        if second:
            moved = [(v, tf.identity(v.value)) for v in variables]
            if moves is not None:
                moved = [(v, value + move) for (v, value), move in zip(moved, moves, strict=True)]
            scope = keras.StatelessScope(moved, collect_losses=True)
            places = [scope.get_current_value(v) for v in variables]
        with tf.GradientTape() as tape, scope:
            if second:
                tape.watch(places)
            two = isinstance(self, TwoPasses)
            with (
                self._passing(shifts, tape.watch) if two else contextlib.nullcontext([]) as observed
            ):
                y_pred = self(x, training=True)
            loss = self._local_loss(x, y, y_pred, sample_weight, training=True)
            scaled = self.optimizer.scale_loss(loss)
        observed = [] if second else observed
        gradients, slopes = tape.gradient(scaled, (places, observed))
        if second:
            for variable in self.non_trainable_variables:
                value = scope.get_current_value(variable)
                if value is not None and not keras.backend.is_float_dtype(variable.dtype):
                    variable.assign(value)
        # Dense, also for an embedding, so that they can be weighted.
        gradients, slopes = dense(gradients, variables), dense(slopes, observed)
        return y_pred, _mask_of(y_pred), loss, gradients, slopes

    def _local_loss(self, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool) -> Any:
        with losses.local_batches():
            loss = self.compute_loss(x, y, y_pred, sample_weight, training=training)
        # Keras has divided it by the number of replicas.
        return loss * _replicas()

    def _record_loss(self, loss: Any, y: Any, y_pred: Any, sample_weight: Any, size: Any) -> Any:
        """Adds the loss of the global batch to its metric; returns this replica's share of it."""
        weight = self._batch_weight(y, y_pred, sample_weight, size)
        lost = tf.where(weight > 0, tf.cast(loss, tf.float32) * weight, 0.0)
        total = _sum_over_replicas(tf.stack([weight, lost]))
        keras_internals.loss_metric(self).update_state(
            tf.math.divide_no_nan(total[1], total[0]), sample_weight=size
        )
        return tf.math.divide_no_nan(weight, total[0])

    def _batch_weight(self, y: Any, y_pred: Any, sample_weight: Any, size: Any) -> Any:
        """The divisor of the mean over this replica's share."""
        given = keras.tree.flatten(self.loss)
        ours = len(given) == 1 and isinstance(given[0], losses.ClassWeightedLoss)
        if ours and not keras.tree.is_nested(y_pred):
            return given[0].batch_weight(keras.tree.flatten(y)[0], y_pred, sample_weight)
        mask = None if keras.tree.is_nested(y_pred) else keras_internals.mask_of(y_pred)
        number = tf.cast(size, tf.float32)
        if mask is not None:
            mask = tf.cast(mask, tf.float32)
            number = tf.reduce_sum(mask)
        reduction = getattr(self.loss, "reduction", None)
        if reduction != "mean_with_sample_weight" or sample_weight is None:
            return number
        weights = tf.cast(sample_weight, tf.float32)
        return tf.reduce_sum(weights if mask is None else weights * mask)

    def _clipped(self, gradients: list[Any]) -> list[Any]:
        clipped = keras_internals.clip_gradients(self.optimizer, _sum_over_replicas(gradients))
        # The optimizer sums over the replicas again; then nothing is left to clip.
        return [gradient / _replicas() for gradient in clipped]

    def _over_workers(self, metrics: Any) -> Any:
        # Under MultiWorkerMirroredStrategy Keras takes the mean over the first axis.
        if not is_multiworker(self.distribute_strategy):
            return metrics
        return keras.tree.map_structure(lambda value: tf.reshape(value, [1]), metrics)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        # See `keras_internals.OVERRIDDEN`. The first replica's batch has the shapes and types.
        if iterator is not None:
            local = self.distribute_strategy.experimental_local_results
            for _, _, batches in iterator:
                data_batch = keras.tree.map_structure(lambda v: local(v)[0], next(batches))
                break
        super()._maybe_symbolic_build(data_batch=data_batch)


@keras.saving.register_keras_serializable(package="keras_ldam")
class ReplicatedModel(ReplicatedStep, keras.Model):
    """A functional Keras model with the step of `ReplicatedStep`.

    To give this step to an existing functional model, call
    `ReplicatedModel(model.inputs, model.outputs)` inside the scope that the model was created in.

    Args:
        inputs: As in `keras.Model`.
        outputs: As in `keras.Model`.
    """


@keras.saving.register_keras_serializable(package="keras_ldam")
class ReplicatedAdversarialTraining(ReplicatedStep, AdversarialTraining):
    """`keras_ldam.AdversarialTraining` with the step of `ReplicatedStep`.

    Args:
        model: As in `keras_ldam.AdversarialTraining`, created inside the strategy's scope, where
            this is created too.
        epsilon: As in `keras_ldam.AdversarialTraining`.
        **kwargs: Further arguments of `keras.Model`.
    """


@keras.saving.register_keras_serializable(package="keras_ldam")
class ReplicatedSharpnessAwareTraining(ReplicatedStep, SharpnessAwareTraining):
    """`keras_ldam.SharpnessAwareTraining` with the step of `ReplicatedStep`.

    Every replica moves its weights by the gradient of the whole batch, summed over the replicas, so
    that a step is that of one device up to rounding. It takes two sums over the replicas.

    Args:
        model: A built model, created inside the strategy's scope, where this is created too.
        rho: As in `keras_ldam.SharpnessAwareTraining`.
        **kwargs: Further arguments of `keras.Model`.
    """


def _times(share: Any, gradients: list[Any]) -> list[Any]:
    return [tf.cast(share, gradient.dtype) * gradient for gradient in gradients]


def _size(x: Any) -> Any:
    return tf.shape(next(part for part in keras.tree.flatten(x) if part is not None))[0]


def _mask_of(y_pred: Any) -> Any:
    return keras.tree.map_structure(keras_internals.mask_of, y_pred)


def _first(size: Any, y_pred: Any, mask: Any) -> Any:
    """Returns the scores of a share, without the example that padded it, and with their masks."""

    def first(scores: Any, mask: Any) -> Any:
        scores = scores[:size]
        if mask is not None:
            keras_internals.set_mask(scores, mask[:size])
        return scores

    return keras.tree.map_structure_up_to(y_pred, first, y_pred, mask)


def _at_least_one(x: Any, y: Any, sample_weight: Any, size: Any) -> Any:
    """Pads an empty share with an example of zeros, whose weight is 0.

    Layers that average over an empty batch would give NaN and keep it in their moving statistics.
    """
    missing = tf.maximum(1 - size, 0)

    def padded(part: Any) -> Any:
        return tf.pad(part, [[0, missing]] + [[0, 0]] * (len(part.shape) - 1))

    return keras.tree.map_structure(
        lambda part: None if part is None else padded(part),
        (x, y, sample_weight),
    )


def _replicas() -> Any:
    return tf.distribute.get_strategy().num_replicas_in_sync


def _sum_over_replicas(values: Any) -> Any:
    return _over_replicas(tf.distribute.ReduceOp.SUM, values)


def _over_replicas(how: Any, values: Any) -> Any:
    return tf.distribute.get_replica_context().all_reduce(how, values)


def _clips(optimizer: keras.optimizers.Optimizer) -> bool:
    return any(
        getattr(optimizer, name, None) is not None
        for name in ("clipnorm", "global_clipnorm", "clipvalue")
    )
