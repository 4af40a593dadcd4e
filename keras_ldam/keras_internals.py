"""Every private name of Keras and TensorFlow that this library uses, with its reason.

Nothing else in the package may use one: each has a function here, or a line in `OVERRIDDEN` where
it is a method that a subclass replaces. All of them were seen in Keras 3.14 to 3.15.1 and in
TensorFlow 2.20 to 2.21; where a version lacks one, `tests/library/test_keras_internals.py` fails
and says which. Importing this module does not import TensorFlow.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras.src import backend as keras_backend

OVERRIDDEN = {
    "_maybe_symbolic_build": (
        "`ReplicatedStep` replaces this method of Keras' TensorFlow trainer, which builds a model "
        "from the first batch of `fit` or `evaluate`: under a strategy Keras averages the "
        "replicas' batches for it, which fails for labels that are whole numbers or strings. No "
        "public method is called between the first batch and the build."
    ),
}
"""Private methods of Keras that a class of this library replaces, and why."""


# ----------------------------------------------------------------------------- tensors and layers


def mask_of(tensor: Any) -> Any:
    """Returns the mask that Keras has attached to a tensor, or `None`.

    `keras.src.backend.get_keras_mask`. Keras passes masks to `call` and to its own losses, but a
    loss of one's own only gets the scores. A compiled step on JAX keeps masks elsewhere than on the
    tensor, so reading the attribute is not enough.
    """
    return keras_backend.get_keras_mask(tensor)


def set_mask(tensor: Any, mask: Any) -> None:
    """Attaches a mask to a tensor.

    `keras.src.backend.set_keras_mask`, for scores that are sliced after the model was called: the
    slice has lost its mask, and the metrics need it. See `mask_of`.
    """
    keras_backend.set_keras_mask(tensor, mask)


def no_autocast() -> contextlib.AbstractContextManager[Any]:
    """Within it, variables are read in their own type, inside the call of a layer too.

    `keras.src.backend.AutocastScope`. Under a mixed policy Keras' `Layer.__call__` opens one for
    all that a layer reads, those of others included.
    """
    return keras_backend.AutocastScope(None)


def layers_of(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns a model's layers, the layers inside them, and the model itself.

    `Layer._flatten_layers`. The public `Model.layers` lists direct layers only, and a layer that is
    no model does not list its parts.
    """
    return list(model._flatten_layers())


def schedule_of(optimizer: keras.optimizers.Optimizer) -> Any:
    """Returns the learning-rate schedule of an optimizer, or `None` if its rate is a number.

    `Optimizer._learning_rate`. The public `learning_rate` is the rate of the present step, and
    `get_config` has a copy of the schedule, which a class of one's own need not offer.
    """
    rate = optimizer._learning_rate
    return rate if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule) else None


def operation_of(tensor: Any) -> Any:
    """Returns the layer or operation that a symbolic tensor comes from.

    `KerasTensor._keras_history`. The public `Operation.output` only tells the tensors of an
    operation's first call, which is another one where a layer is shared.
    """
    return tensor._keras_history.operation


def place_of(tensor: Any) -> int:
    """Returns which output of its operation a symbolic tensor is, from zero.

    `KerasTensor._keras_history.tensor_index`, for the reason of `operation_of`.
    """
    return tensor._keras_history.tensor_index


def arguments_of(tensor: Any) -> list[Any]:
    """Returns the symbolic tensors that the call was given which a symbolic tensor comes from.

    `KerasTensor._keras_history.node_index` and `Operation._inbound_nodes`, for the reason of
    `operation_of`: the public `Operation.input` is that of the first call, and of a model its own.
    """
    history = tensor._keras_history
    return list(history.operation._inbound_nodes[history.node_index].input_tensors)


# ----------------------------------------------------------------------------- optimizers


def variable_index(optimizer: keras.optimizers.Optimizer, variable: Any) -> int:
    """Returns the place of a variable among those that an optimizer was built for.

    `Optimizer._get_variable_index`, with which all optimizers of Keras find the state that belongs
    to a variable in `update_step`. There is no public way.
    """
    return int(optimizer._get_variable_index(variable))


def decays(optimizer: keras.optimizers.Optimizer, variable: Any) -> bool:
    """Returns whether weight decay applies to a variable.

    `Optimizer._use_weight_decay`, which answers what the public `exclude_from_weight_decay` has
    set.
    """
    return bool(optimizer._use_weight_decay(variable))


def clip_gradients(
    optimizer: keras.optimizers.Optimizer, gradients: Sequence[Any]
) -> Sequence[Any]:
    """Clips gradients as an optimizer's `clipnorm`, `global_clipnorm` or `clipvalue` says.

    `Optimizer._clip_gradients`. Keras calls it on the gradients of one replica; they are to be
    clipped after they were summed.
    """
    clipped: Sequence[Any] = optimizer._clip_gradients(gradients)
    return clipped


# ----------------------------------------------------------------------------- training


def loss_metric(model: keras.Model) -> keras.metrics.Metric:
    """Returns the metric that `fit` shows as `loss`.

    `Trainer._loss_tracker`. A `train_step` of one's own has to update it, and the public
    `Model.metrics`, where it stands first, may be overridden by a subclass.
    """
    return model._loss_tracker


def has_strategy(model: keras.Model) -> bool:
    """Whether a model was made under a `tf.distribute` strategy.

    `Trainer._distribute_strategy`, on TensorFlow; the public `distribute_strategy` is a default one
    elsewhere, which cannot be told from a user's own within its scope.
    """
    return getattr(model, "_distribute_strategy", None) is not None


def set_cardinality(dataset: Any, steps: int) -> None:
    """Sets the number of steps that a distributed dataset tells Keras.

    `tf.distribute.DistributedDataset._cardinality`, which the public `cardinality` returns. For a
    dataset of `distribute_datasets_from_function` TensorFlow counts the elements of the function's
    dataset, one per replica, and Keras shows these as the steps of an epoch. Passing
    `steps_per_epoch` to `fit` is no way out: with it Keras keeps one iterator for all epochs.
    """
    dataset.cardinality  # noqa: B018 - Raises if TensorFlow no longer has it.
    dataset._cardinality = steps


_untuned = contextvars.ContextVar("untuned", default=False)


@contextlib.contextmanager
def without_autotuning() -> Iterator[None]:
    """Within it, iterators over several devices are made without tf.data's autotuner.

    `tensorflow.python.data.ops.multi_device_iterator_ops._create_device_dataset`. At the end of an
    epoch TensorFlow waits for the autotuner's thread, which sleeps 10 ms · 2^k: 0.2 s for an epoch
    of one second, for each of Keras' iterators. Options switch the autotuner off, but those of the
    dataset that is distributed do not reach the small datasets, one per device, that
    `tf.distribute` makes between it and `fit`; neither does any of `tf.distribute.InputOptions`,
    except with one pipeline for each replica, which multiplies the work of reading.

    TensorFlow's function is replaced once, by one that does the same and only acts differently in
    this context: other threads, and code outside of the `with`, keep TensorFlow's behavior.
    Nothing else depends on it: where TensorFlow has no such function, epochs end later.
    """
    with contextlib.suppress(ImportError, AttributeError):
        _make_device_datasets_untunable()
    token = _untuned.set(True)
    try:
        yield
    finally:
        _untuned.reset(token)


@functools.cache
def _make_device_datasets_untunable() -> None:
    import tensorflow as tf
    from tensorflow.python.data.ops import multi_device_iterator_ops

    create = multi_device_iterator_ops._create_device_dataset
    options = tf.data.Options()
    options.autotune.enabled = False

    @functools.wraps(create)
    def create_device_dataset(*args: Any, **kwargs: Any) -> Any:
        dataset = create(*args, **kwargs)
        return dataset.with_options(options) if _untuned.get() else dataset

    multi_device_iterator_ops._create_device_dataset = create_device_dataset


@functools.cache
def lay_out_each_batch() -> None:
    """Makes `fit`, `evaluate` and `predict` on JAX ask a distribution for the layout of each batch.

    `keras.src.backend.jax.trainer.JAXEpochIterator._get_distributed_iterator`. Keras asks for that
    of the first batch and lays out all others alike, which fails for a last batch that the devices
    cannot share out evenly. On several machines each process has the whole batch here, and keeps
    its part.

    The method is replaced once, by one that acts differently only for the distributions of
    `keras_ldam.sharding`, whose tests fail where Keras no longer calls it.
    """
    from keras.src.backend.jax import trainer

    theirs = trainer.JAXEpochIterator._get_distributed_iterator

    @functools.wraps(theirs)
    def ours(self: Any, distribution: Any) -> Iterator[Any]:
        place = getattr(distribution, "place", None)
        if place is None:
            yield from theirs(self, distribution)
            return
        for data in self.data_adapter.get_jax_iterator():
            yield keras.tree.map_structure(place, data)

    trainer.JAXEpochIterator._get_distributed_iterator = ours
