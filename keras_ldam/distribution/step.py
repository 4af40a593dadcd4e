"""A training step for several replicas that is exact and that XLA can compile."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend import get_keras_mask, set_keras_mask
from keras.src.backend.tensorflow.trainer import reduce_per_replica
from tensorflow.python.data.ops import multi_device_iterator_ops

from keras_ldam import hardware, losses
from keras_ldam.distribution.strategies import is_multiworker


class ReplicatedStep:
    """Mixin for a Keras model: training steps for `tf.distribute`, exact and compilable.

    Put it before `keras.Model` among the bases of your model, or take `ReplicatedModel`. Create
    model, loss and optimizer inside `strategy.scope()`, then `compile` and `fit` as ever, with
    batches of the global size. It differs from Keras' own step in this:

    - The batch is the global one. Each replica's loss and gradients count by its share of the
      batch: by the sum of its weights for the losses of `keras_ldam`, Σ w ℓ / Σ w over all
      replicas, and by its number of examples otherwise. So a last partial batch, a class that one
      replica does not see, and a replica whose share is empty change nothing: the weights are
      those of a single device up to rounding. (But batch normalisation is by each replica's
      share. Its moving statistics are averaged over the replicas before validation and at the end
      of each epoch, before other callbacks, so that all replicas go on with the same.)
    - `jit_compile=True` compiles forward and backward pass with XLA. All-reduce, optimizer and
      metrics stay outside, since XLA cannot have variables of several devices in one cluster;
      with Keras' step it fails under a strategy. `"auto"` is on where there is an accelerator:
      on CPUs XLA is slower, see `benchmarks/README.md`.
    - It clips gradients (`clipnorm`, `global_clipnorm`, `clipvalue`) after they have been summed;
      Keras clips each replica's part.
    - Each replica draws its own dropout and augmentation; Keras' draw all the same.
    - `fit` and `evaluate` work under `MultiWorkerMirroredStrategy`.

    `predict` is Keras' own: under a strategy pass it a `tf.data.Dataset`. The reduction of the loss
    must be a mean. With several losses or outputs, shares count by examples.

    Raises:
        ValueError: from `compile`, for a loss that is not reduced to a mean, or the loss scaling
            of `mixed_float16` over several replicas, with which models were seen to diverge.
    """

    def compile(self, *args: Any, jit_compile: bool | str = "auto", **kwargs: Any) -> None:
        """As in Keras; `jit_compile` is for the forward and backward pass."""
        # Keras would compile the whole step, optimizer and all-reduce included.
        super().compile(*args, jit_compile=False, **kwargs)
        self._asked_jit_compile = jit_compile
        for loss in keras.tree.flatten(self.loss):
            reduction = getattr(loss, "reduction", "sum_over_batch_size")
            if reduction not in ("sum_over_batch_size", "mean", "mean_with_sample_weight"):
                raise ValueError(
                    "the loss must be reduced to a mean over the batch, by "
                    "'mean_with_sample_weight' or 'sum_over_batch_size'; received "
                    f"reduction={reduction!r}."
                )
        scales = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        if scales and self.distribute_strategy.num_replicas_in_sync > 1:
            raise ValueError(
                "the loss scaling of mixed_float16 does not work over several replicas; choose "
                "mixed_bfloat16 or float32."
            )
        if jit_compile == "auto":
            jit_compile = hardware.accelerators() and all(
                layer.supports_jit for layer in self._flatten_layers()
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
        """As in Keras, with the `jit_compile` that was asked for."""
        config = super().get_compile_config()
        return config and {**config, "jit_compile": self._asked_jit_compile}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """As in Keras, which does not do it for a class with a `compile` of its own."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built and self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    def fit(self, *args: Any, callbacks: Any = None, **kwargs: Any) -> keras.callbacks.History:
        """As in Keras; `callbacks`, one or a list of them, by keyword."""
        strategy = self.distribute_strategy

        @tf.function(autograph=False)
        def average():
            strategy.run(self._average_statistics)

        @tf.function(autograph=False)
        def part():
            strategy.run(self._part_noise)

        first = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda *_: average(),
            on_test_begin=lambda *_: average(),  # Validation comes before the end of the epoch.
        )
        # Each epoch, and after the others, of which one may have set the seeds.
        last = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: part())
        with _without_autotuning():
            return super().fit(
                *args, callbacks=[first, *keras.tree.flatten(callbacks or []), last], **kwargs
            )

    def _part_noise(self):
        """Gives each replica a seed of its own, counted from the first one's."""
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        for layer in self._flatten_layers():
            for generator in layer._seed_generators:
                state = tf.identity(generator.state.value)
                first = _sum_over_replicas(tf.where(replica == 0, state, 0))
                generator.state.assign(first + tf.cast([replica, 0], state.dtype))

    def _average_statistics(self):
        variables = [
            v for v in self.non_trainable_variables if keras.backend.is_float_dtype(v.dtype)
        ]
        if variables:
            # Identities: a variable's value has no device, which the sum goes by.
            local = [tf.identity(v.value) for v in variables]
            means = _over_replicas(tf.distribute.ReduceOp.MEAN, local)
            for variable, mean in zip(variables, means, strict=True):
                variable.assign(mean)

    def make_train_function(self, force: bool = False) -> None:
        """Makes what `fit` calls; with `steps_per_execution` a loop that Keras' own cannot do."""
        made = self.train_function is not None and not force
        super().make_train_function(force)
        if made or self.run_eagerly or self.steps_per_execution == 1:
            return
        steps, strategy = self.steps_per_execution, self.distribute_strategy

        def one_step(iterator):
            metrics = strategy.run(self.train_step, args=(iterator.get_next(),))
            return reduce_per_replica(metrics, strategy, reduction="auto")

        @tf.function(autograph=False, reduce_retracing=True)
        def several_steps(iterator):
            # The end of the data ends the loop, and with it the epoch.
            def body(step):
                one_step(iterator)
                return (step + 1,)

            tf.while_loop(lambda step: step < steps - 1, body, (0,), parallel_iterations=1)
            return one_step(iterator)

        self.train_function = several_steps

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step on this replica's share of a batch; returns the metrics so far."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        size = _size(x)
        y_pred, mask, loss, gradients = self._pass(*_at_least_one(x, y, sample_weight, size))
        y_pred = _first(size, y_pred, mask)

        share = self._record_loss(loss, y, y_pred, sample_weight, size)
        gradients = [tf.cast(share, gradient.dtype) * gradient for gradient in gradients]
        if _clips(self.optimizer):
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

    def _forward_and_backward(self, x, y, sample_weight):
        """Scores, their mask, and the mean loss of this replica's share with its gradients."""
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self._local_loss(x, y, y_pred, sample_weight, training=True)
            scaled = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        gradients = tape.gradient(scaled, variables)
        # Dense, those of an embedding too, so that they can be weighed; zeros where there is none.
        gradients = [
            tf.zeros(v.shape, v.dtype) if g is None else tf.convert_to_tensor(g)
            for g, v in zip(gradients, variables, strict=True)
        ]
        return y_pred, _mask_of(y_pred), loss, gradients

    def _local_loss(self, x, y, y_pred, sample_weight, training):
        with losses.local_batches():
            loss = self._compute_loss(x, y, y_pred, sample_weight, training=training)
        # Keras has divided it by the number of replicas.
        return loss * _replicas()

    def _record_loss(self, loss, y, y_pred, sample_weight, size):
        """Adds the global batch's loss to its metric; returns this replica's share of the batch."""
        weight = self._batch_weight(y, y_pred, sample_weight, size)
        lost = tf.where(weight > 0, tf.cast(loss, tf.float32) * weight, 0.0)
        total = _sum_over_replicas(tf.stack([weight, lost]))
        self._loss_tracker.update_state(
            tf.math.divide_no_nan(total[1], total[0]), sample_weight=size
        )
        return tf.math.divide_no_nan(weight, total[0])

    def _batch_weight(self, y, y_pred, sample_weight, size):
        """What the mean over this replica's share has been divided by."""
        if getattr(self.loss, "reduction", None) == "mean_with_sample_weight":
            if isinstance(self.loss, losses.ClassWeightedLoss):
                return tf.reduce_sum(self.loss.example_weights(y, y_pred, sample_weight))
            if sample_weight is not None:
                return tf.reduce_sum(tf.cast(sample_weight, tf.float32))
        return tf.cast(size, tf.float32)

    def _clipped(self, gradients):
        total = _sum_over_replicas(gradients)
        # The optimizer sums over replicas once more, and by then there is nothing left to clip.
        return [gradient / _replicas() for gradient in self.optimizer._clip_gradients(total)]

    def _over_workers(self, metrics):
        # Under MultiWorkerMirroredStrategy Keras takes the mean over a first axis.
        if not is_multiworker(self.distribute_strategy):
            return metrics
        return keras.tree.map_structure(lambda value: tf.reshape(value, [1]), metrics)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Keras would average the replicas' batches, labels included.
        if iterator is not None:
            local = self.distribute_strategy.experimental_local_results
            for _, _, batches in iterator:
                data_batch = keras.tree.map_structure(lambda v: local(v)[0], next(batches))
                break
        super()._maybe_symbolic_build(data_batch=data_batch)


@keras.saving.register_keras_serializable(package="keras_ldam")
class ReplicatedModel(ReplicatedStep, keras.Model):
    """A functional Keras model with the step of `ReplicatedStep`.

    Args:
        inputs: As in `keras.Model`; to give this step to a functional model that there is,
            `ReplicatedModel(model.inputs, model.outputs)`, inside the scope it was made in.
        outputs: Likewise.
    """


@contextlib.contextmanager
def _without_autotuning():
    """Has iterators over several devices made without tf.data's autotuner.

    It ends an epoch only when its own thread next wakes, after 10 ms · 2^k, and the options of the
    dataset that is distributed do not reach them.
    """
    make = multi_device_iterator_ops._create_device_dataset
    options = tf.data.Options()
    options.autotune.enabled = False

    def make_untuned(*args, **kwargs):
        return make(*args, **kwargs).with_options(options)

    multi_device_iterator_ops._create_device_dataset = make_untuned
    try:
        yield
    finally:
        multi_device_iterator_ops._create_device_dataset = make


def _size(x):
    return tf.shape(next(part for part in keras.tree.flatten(x) if part is not None))[0]


def _mask_of(y_pred):
    return keras.tree.map_structure(get_keras_mask, y_pred)


def _first(size, y_pred, mask):
    """The scores of a share without what has been put into it, with their masks."""

    def first(scores, mask):
        scores = scores[:size]
        if mask is not None:
            set_keras_mask(scores, mask[:size])
        return scores

    return keras.tree.map_structure_up_to(y_pred, first, y_pred, mask)


def _at_least_one(x, y, sample_weight, size):
    """Puts an example of zeros into an empty share, which counts nothing.

    Layers that average over the batch would give NaN, and keep it in their moving statistics.
    """
    missing = tf.maximum(1 - size, 0)

    def padded(part):
        return tf.pad(part, [[0, missing]] + [[0, 0]] * (len(part.shape) - 1))

    return keras.tree.map_structure(
        lambda part: None if part is None else padded(part),
        (x, y, sample_weight),
    )


def _replicas():
    return tf.distribute.get_strategy().num_replicas_in_sync


def _sum_over_replicas(values):
    return _over_replicas(tf.distribute.ReduceOp.SUM, values)


def _over_replicas(how, values):
    return tf.distribute.get_replica_context().all_reduce(how, values)


def _clips(optimizer):
    return any(
        getattr(optimizer, name, None) is not None
        for name in ("clipnorm", "global_clipnorm", "clipvalue")
    )
