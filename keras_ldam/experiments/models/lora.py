"""Low-rank additions to the kernels of a pretrained body (LoRA), where Keras offers them.

Keras saves a layer's kernel with its addition, and loads it with both factors zero, where each
gradient is a multiple of the other factor: training that resumes from such a file stands still. So
checkpoints keep kernels and factors apart, and a finished model has neither.
"""

from __future__ import annotations

import gc
from pathlib import Path

import keras
import numpy as np

from keras_ldam import keras_internals


def enable(model: keras.Model, head: keras.layers.Layer, rank: int) -> None:
    """Freezes a pretrained body but for low-rank additions to its kernels.

    A layer that has Keras' `enable_lora` (`Dense`, `EinsumDense`, `Embedding`, convolutions) adds
    the product of two trained factors to its kernel, and trains its bias. All others are frozen.

    Args:
        model: A model that ends in the head.
        head: Its last layer, which is always trained.
        rank: Rank of the additions.

    Raises:
        ValueError: if no layer of the body has it, or one that has it refuses it.
    """
    layers = [
        layer
        for layer in keras_internals.layers_of(model)
        if layer is not head and not isinstance(layer, keras.Model)
    ]
    offering = [layer for layer in layers if hasattr(layer, "enable_lora")]
    if not offering:
        raise ValueError(
            "`lora` needs a pretrained body with a layer that offers it: Dense, EinsumDense, "
            f"Embedding or a convolution of Keras. Received: lora={rank}, and a body of "
            f"{', '.join(sorted({type(layer).__name__ for layer in layers}))}"
        )
    for layer in layers:
        layer.trainable = False
    for layer in offering:
        layer.trainable = True
        try:
            layer.enable_lora(rank)
        except (ValueError, NotImplementedError) as error:
            raise ValueError(f"`lora`: layer {layer.name!r} refuses it: {error}") from None
    trained = sum(int(np.prod(weights.shape)) for weights in model.trainable_weights)
    print(
        f"lora {rank}, layers with an addition: {len(offering)}; {trained:,} of "
        f"{model.count_params():,} parameters are trained",
        flush=True,
    )


def save_weights(model: keras.Model, path: str | Path) -> None:
    """Writes the weights of a model in training, kernels and factors apart.

    Args:
        model: The model, compiled.
        path: A file `.weights.h5`.
    """
    layers = _adapted(model)
    for layer in layers:
        layer.lora_enabled = False
    try:
        model.save_weights(path)
    finally:
        for layer in layers:
            layer.lora_enabled = True
    if layers:
        import h5py

        with h5py.File(path, "a") as file:
            for name, factor in _factors(layers):
                file[name] = keras.ops.convert_to_numpy(factor)


def load_weights(model: keras.Model, path: str | Path) -> None:
    """Loads what `save_weights` has written.

    Args:
        model: A model of the same config, compiled.
        path: The file.

    Raises:
        Exception: whatever Keras and h5py raise for a file that cannot be read.
    """
    model.load_weights(path)
    layers = _adapted(model)
    if layers:
        import h5py

        with h5py.File(path) as file:
            for name, factor in _factors(layers):
                factor.assign(file[name][()])


def merged(model: keras.Model) -> keras.Model:
    """Puts the additions into the kernels, for good.

    Args:
        model: A functional model, whose training has ended.

    Returns:
        The model itself if it has none; otherwise one with its layers, not compiled, as its
        optimizer knows the factors.
    """
    layers = _adapted(model)
    if not layers:
        return model
    gc.freeze()  # Keras collects garbage after each deletion: a second for each layer.
    try:
        for layer in layers:
            name = _kernel(layer)
            kernel = keras.ops.convert_to_numpy(getattr(layer, name))
            layer.lora_enabled, layer.lora_rank = False, None
            getattr(layer, name).assign(kernel)
            for factor in "ab":
                delattr(layer, f"lora_{name}_{factor}")
    finally:
        gc.unfreeze()
    return keras.Model(model.inputs, model.outputs, name=model.name)


def _adapted(model):
    layers = keras_internals.layers_of(model)
    return [layer for layer in layers if getattr(layer, "lora_enabled", False)]


def _factors(layers):
    """The factors of layers, by names in a file."""
    for i, layer in enumerate(layers):
        for factor in "ab":
            yield f"lora/{i}/{factor}", getattr(layer, f"lora_{_kernel(layer)}_{factor}")


def _kernel(layer):
    return "embeddings" if isinstance(layer, keras.layers.Embedding) else "kernel"
