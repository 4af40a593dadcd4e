"""The classes of a model divided among devices, on Keras' JAX backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_ldam import counts as class_counts

_REPLICAS, _CLASSES = "replicas", "classes"


class ShardedClasses(keras.distribution.ModelParallel):
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
            batch, which must then be a multiple of it. With 1 every device sees the whole batch.

    Raises:
        ValueError: if an argument is not as described, a device does not exist, or the backend is
            another one; from a `CosineDense` of another number of classes, which would be on every
            device as a whole.

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
        if keras.backend.backend() != "jax":
            raise ValueError(
                f"`ShardedClasses` needs Keras' JAX backend. Received: {keras.backend.backend()!r}"
            )
        known = keras.distribution.list_devices()
        chosen = list(known if devices is None else devices)
        missing = [device for device in chosen if device not in known]
        if missing or not chosen:
            raise ValueError(f"`devices` must be some of {', '.join(known)}. Received: {devices!r}")
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
        super().__init__(layout_map=keras.distribution.LayoutMap(mesh), batch_dim_name=_REPLICAS)
        self.num_classes = int(num_classes)

    def get_variable_layout(self, variable: Any) -> Any:
        """Returns where the parts of a variable lie."""
        shape = tuple(variable.shape)
        if shape[-1:] != (self.num_classes,):
            return super().get_variable_layout(variable)
        axes = [None] * (len(shape) - 1) + [_CLASSES]
        return keras.distribution.TensorLayout(axes, self.device_mesh)


def check_sharded(num_classes: int) -> None:
    """Raises `ValueError` where a head would be on every device by mistake."""
    distribution = keras.distribution.distribution()
    if isinstance(distribution, ShardedClasses) and num_classes != distribution.num_classes:
        raise ValueError(
            f"The classes of this head would not be divided: it has {num_classes}, and "
            f"ShardedClasses was made for {distribution.num_classes}."
        )
