"""What averaged weights need: statistics of batch normalization that belong to them."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_ldam import counts as class_counts
from keras_ldam import keras_internals
from keras_ldam.counting import check_ends


def estimate_batch_norm(
    model: keras.Model, data: Any, *, batches: int | None = None, batch_size: int = 128
) -> None:
    """Estimates the moving statistics of batch normalization anew, for the weights as they are.

    Averaged weights, as of an optimizer's `use_ema=True`, of `keras.callbacks.SwapEMAWeights` or of
    several checkpoints, give other activations than those whose statistics training has gathered.
    This runs batches through the model in training mode, dropout and augmentation included, and
    puts the mean of their means and variances in the place of the moving ones. Other weights stay,
    but for those that a layer itself changes in training mode, as `SpectralNormalization` does.
    Layers of batch normalization that are frozen keep their statistics.

    Args:
        model: A built model, whose weights are set already.
        data: Inputs x, an array or a dictionary of arrays, `(n, …)`, or `(x, y)`, where x may also
            be a list of arrays; or an iterable of batches, such as a `tf.data.Dataset` or a
            `keras.utils.PyDataset`. Of tuples the first part is taken. Shuffle the batches of an
            iterable; each is weighted by its number of examples. A layer that the model calls more
            than once gets the statistics of the last.
        batches: How many batches to use at most, at least 1. Defaults to all.
        batch_size: For arrays, which are shuffled: examples in a batch; those that are left over
            are not used. Statistics depend on it a little: take that of training. Defaults to 128.

    Raises:
        ValueError: if the model is not built or has no batch normalization that is trained, if
            `data` is empty or endless or gives statistics that are not finite, or if an argument is
            out of range. The moving statistics are left as they were.

    Example:

    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization()])
    >>> estimate_batch_norm(model, np.array([[1.0], [3.0]]))
    >>> float(model.layers[0].moving_mean[0]), float(model.layers[0].moving_variance[0])
    (2.0, 1.0)

    References:
        Izmailov et al., 2018, "Averaging Weights Leads to Wider Optima and Better Generalization",
        section 3.2.
    """
    BatchNormEstimate(model)(data, batches=batches, batch_size=batch_size)


class BatchNormEstimate:
    """Does what `estimate_batch_norm` does, as often as it is called, and compiles the pass once.

    Args:
        model: As in `estimate_batch_norm`; which of its layers are frozen must not change.

    Raises:
        ValueError: if the model is not built or has no batch normalization that is trained.
    """

    def __init__(self, model: keras.Model) -> None:
        if not isinstance(model, keras.Model) or not model.built:
            raise ValueError(f"`model` must be a built Keras model. Received: {model!r}")
        self._layers = trained_batch_norm(model)
        if not self._layers:
            raise ValueError(
                "`model` must have a layer of batch normalization that is not frozen. Received: "
                f"{model!r}"
            )
        self._run = _training_pass(model)

    def __call__(self, data: Any, *, batches: int | None = None, batch_size: int = 128) -> None:
        """Sets the statistics; see `estimate_batch_norm`."""
        if batches is not None:
            class_counts.check_whole("batches", batches, 1)
            batches = int(batches)
        class_counts.check_whole("batch_size", batch_size, 1)
        if batches is None:
            check_ends("data", data, "or pass `batches`")
        statistics = [v for each in self._layers for v in (each.moving_mean, each.moving_variance)]
        sums, number = [np.zeros(v.shape) for v in statistics], 0
        before = [keras.ops.convert_to_numpy(v) for v in statistics]
        momenta = [layer.momentum for layer in self._layers]
        found = before
        try:
            for layer in self._layers:
                layer.momentum = 0.0  # The statistics are then those of the last batch.
            for variable, value in zip(statistics, before, strict=True):
                if not np.isfinite(value).all():  # 0 · NaN would stay NaN.
                    variable.assign(np.where(np.isfinite(value), value, 0).astype(value.dtype))
            for x in itertools.islice(_inputs(data, int(batch_size)), batches):
                self._run(x)
                size = int(keras.ops.shape(keras.tree.flatten(x)[0])[0])
                sums = [
                    total + size * keras.ops.convert_to_numpy(v)
                    for total, v in zip(sums, statistics, strict=True)
                ]
                number += size
            if not number:
                raise ValueError("`data` must have at least one batch. Received: none")
            if not all(np.isfinite(total).all() for total in sums):
                raise ValueError(
                    "The statistics of `data` must be finite. Received: NaN or infinity, from "
                    "`data` or from the weights of `model`"
                )
            found = [total / number for total in sums]
        finally:  # After an error all is as it was.
            for layer, momentum in zip(self._layers, momenta, strict=True):
                layer.momentum = momentum
            for variable, value in zip(statistics, found, strict=True):
                variable.assign(value.astype(before[0].dtype))


def trained_batch_norm(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the layers of batch normalization that are not frozen, also those inside others."""
    return [
        layer
        for layer in keras_internals.layers_of(model)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]


def _training_pass(model: keras.Model) -> Callable[[Any], None]:
    """Returns a function that runs inputs through a model in training mode, compiled."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        def run(x: Any) -> None:
            model(x, training=True)

        compiled = tf.function(run, autograph=False, reduce_retracing=True)
        # In the scope of a strategy a function that is traced twice mixes up its variables.
        return lambda x: run(x) if tf.distribute.has_strategy() else compiled(x)
    if keras.backend.backend() == "jax":
        import jax

        @jax.jit
        def updates(trainable: Any, others: Any, x: Any) -> Any:
            return model.stateless_call(trainable, others, x, training=True)[1]

        def run_stateless(x: Any) -> None:
            variables = model.non_trainable_variables
            new = updates(
                [v.value for v in model.trainable_variables], [v.value for v in variables], x
            )
            for variable, value in zip(variables, new, strict=True):
                variable.assign(value)

        return run_stateless

    def run_eagerly(x: Any) -> None:
        model(x, training=True)

    return run_eagerly


def _inputs(data: Any, batch_size: int) -> Iterator[Any]:
    of_arrays: tuple[type, ...] = (np.ndarray, dict)
    if isinstance(data, tuple) and data:
        data, of_arrays = data[0], (*of_arrays, list, tuple)
    if hasattr(data, "__array__"):  # A tensor too, whose rows are no batches.
        data = keras.ops.convert_to_numpy(data)
    if isinstance(data, of_arrays):
        if keras.backend.backend() == "tensorflow":  # Its tensors take no arrays of places.
            data = keras.tree.map_structure(np.asarray, data)
        kinds = {np.asarray(leaf).dtype.kind for leaf in keras.tree.flatten(data)}
        if kinds & set("OSU") and keras.backend.backend() != "tensorflow":
            raise ValueError("`data` must hold numbers. Received: texts or objects")
        sizes = {np.shape(leaf)[:1] for leaf in keras.tree.flatten(data)}
        if len(sizes) > 1 or () in sizes:
            raise ValueError("`data` must have as many examples in each array")
        order = np.random.default_rng(0).permutation(sizes.pop()[0] if sizes else 0)
        whole = len(order) - len(order) % batch_size or len(order)
        for start in range(0, whole, batch_size):
            yield keras.tree.map_structure(
                operator.itemgetter(order[start : start + batch_size]), data
            )
        return
    if not hasattr(data, "__iter__") or isinstance(data, str):
        received = class_counts.shown(data)
        raise ValueError(f"`data` must be arrays, or an iterable of batches. Received: {received}")
    for batch in data:
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        if keras.backend.backend() != "tensorflow":  # A tf.data.Dataset gives tensors of its own.
            x = keras.tree.map_structure(keras.ops.convert_to_numpy, x)
        yield x
