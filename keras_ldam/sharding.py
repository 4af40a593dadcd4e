"""Batches, and the classes of a model, divided among devices, on Keras' JAX backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_ldam import counts as class_counts
from keras_ldam import keras_internals

_REPLICAS, _CLASSES = "replicas", "classes"


_Distribution: Any = object
"""`object` at run time; `Any`, so that the mixin may use what the distribution beside it has."""


class _EveryBatch(_Distribution):
    """Mixin for a Keras distribution: batches that cannot be shared out evenly stay whole."""

    def get_data_layout(self, data_shape: Sequence[int]) -> Any:
        """Returns where the parts of a batch lie."""
        if data_shape[0] % self.device_mesh.shape[0] == 0:  # Its first axis is that of batches.
            return super().get_data_layout(data_shape)
        return keras.distribution.TensorLayout([None] * len(data_shape), self.device_mesh)

    @property
    def is_local(self) -> bool:
        """Whether all devices belong to this process."""
        import jax  # Installed, since it is the backend.

        return jax.process_count() == 1

    def place(self, array: Any) -> Any:
        """Returns an array of a batch, laid out over the devices; every process has all of it."""
        import jax

        if array is None:
            return None
        layout = self.get_data_layout(array.shape).backend_layout
        if self.is_local:
            return jax.device_put(array, layout)
        return jax.make_array_from_callback(array.shape, layout, lambda part: array[part])


class ShardedBatches(_EveryBatch, keras.distribution.DataParallel):
    """A Keras distribution that divides each batch among devices, and takes every size of batch.

    It is `keras.distribution.DataParallel`, with the whole model on each device, for data whose
    last batch is smaller: a batch that the devices cannot share out evenly is computed by each of
    them as a whole. The devices compute one program over the global batch, so that losses, class
    weights, metrics, batch normalization and random draws are those of one device, up to rounding,
    wherever the examples of a class lie.

    Create model, loss and metrics after `keras.distribution.set_distribution` of it, and train with
    plain `fit`, in batches of the global size. It needs Keras' JAX backend. On several machines
    call `keras.distribution.initialize` first, and give every process the whole batches.

    Args:
        devices: Names of devices, as of `keras.distribution.list_devices()`; all of them by
            default.

    Raises:
        ValueError: if a device does not exist, or the backend is another one.

    Example:

    ```python
    keras.distribution.set_distribution(keras_ldam.ShardedBatches())
    model.compile("sgd", loss=keras_ldam.LDAM(counts))
    model.fit(x, y, batch_size=128)
    ```
    """

    def __init__(self, *, devices: Sequence[str] | None = None) -> None:
        super().__init__(devices=_devices("ShardedBatches", devices), auto_shard_dataset=False)
        keras_internals.lay_out_each_batch()


class ShardedClasses(_EveryBatch, keras.distribution.ModelParallel):
    """A Keras distribution that divides everything that has an entry per class among devices.

    Class vectors, biases, what an optimizer keeps for them, class weights and the sums of metrics
    lie on each device for its own classes, and so do the scores of a batch: no device holds an
    array of `(batch, num_classes)`. The losses and `ClassErrors` work as they are; the
    compiler adds up over the devices what they sum over classes. The rest of the model is on every
    device.

    A variable is divided if its last axis has `num_classes` entries, whatever the layer is called.
    Create model, loss and metrics after `keras.distribution.set_distribution` of it, and compile
    them as always. It needs Keras' JAX backend.

    Args:
        num_classes: K, a multiple of the number of devices that share the classes.
        devices: Names of devices, as of `keras.distribution.list_devices()`; all of them by
            default.
        replicas: Number of groups of devices, each of which has all classes and its part of a
            batch, where it is a multiple of it. With 1 every device sees the whole batch.

    Raises:
        ValueError: if an argument is not as described, a device does not exist, or the backend is
            another one; from a `CosineDense` of another number of classes, and a loss or a
            `ClassErrors` with other counts, which would be on every device as a whole.

    Example:

    ```python
    keras.distribution.set_distribution(keras_ldam.ShardedClasses(1_000_000))
    model = keras.Sequential([body, keras_ldam.CosineDense(1_000_000)])
    model.compile("sgd", loss=keras_ldam.LDAM(counts))
    ```
    """

    def __init__(
        self, num_classes: int, *, devices: Sequence[str] | None = None, replicas: int = 1
    ) -> None:
        class_counts.check_whole("num_classes", num_classes, 2)
        class_counts.check_whole("replicas", replicas, 1)
        num_classes, replicas = int(num_classes), int(replicas)
        chosen = _devices("ShardedClasses", devices)
        if len(chosen) % replicas:
            raise ValueError(
                f"`replicas` must divide the number of devices, {len(chosen)}. Received: {replicas}"
            )
        parts = len(chosen) // replicas
        if num_classes % parts:
            raise ValueError(
                f"`num_classes` must be a multiple of {parts}, the number of devices that share "
                f"the classes; add classes that no example has, up to "
                f"{-(-num_classes // parts) * parts}. Received: {num_classes}"
            )
        mesh = keras.distribution.DeviceMesh((replicas, parts), (_REPLICAS, _CLASSES), chosen)
        layouts = keras.distribution.LayoutMap(mesh)
        super().__init__(layout_map=layouts, batch_dim_name=_REPLICAS, auto_shard_dataset=False)
        keras_internals.lay_out_each_batch()
        self.num_classes = num_classes

    def get_variable_layout(self, variable: Any) -> Any:
        """Returns where the parts of a variable lie."""
        shape = tuple(variable.shape)
        if shape[-1:] != (self.num_classes,):
            return super().get_variable_layout(variable)
        axes = [None] * (len(shape) - 1) + [_CLASSES]
        return keras.distribution.TensorLayout(axes, self.device_mesh)


def check_sharded(num_classes: int, what: str = "head") -> None:
    """Raises `ValueError` where what has an entry per class would be whole on every device."""
    distribution = keras.distribution.distribution()
    if isinstance(distribution, ShardedClasses) and num_classes != distribution.num_classes:
        raise ValueError(
            f"The classes of this {what} would not be divided: it has {num_classes}, and "
            f"ShardedClasses was made for {distribution.num_classes}."
        )


def _devices(name: str, devices: Sequence[str] | None) -> list[str]:
    """Returns the devices that are asked for; all by default."""
    if keras.backend.backend() != "jax":
        raise ValueError(
            f"`{name}` needs Keras' JAX backend. Received: {keras.backend.backend()!r}"
        )
    known = keras.distribution.list_devices()
    try:
        chosen = list(known if devices is None else devices)
    except TypeError:
        chosen = []
    missing = [device for device in chosen if device not in known]
    if missing or not chosen:
        raise ValueError(f"`devices` must be some of {', '.join(known)}. Received: {devices!r}")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"`devices` must name each device once. Received: {devices!r}")
    return chosen
