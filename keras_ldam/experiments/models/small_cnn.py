"""A small convolutional network for small images."""

from __future__ import annotations

from collections.abc import Callable

import keras


def small_cnn(
    *,
    head: keras.layers.Layer,
    input_shape: tuple[int, int, int] = (8, 8, 1),
    width: int = 32,
    name: str = "small_cnn",
) -> keras.Model:
    """Builds three convolutions, the last two at half resolution, and an average over the image.

    Args:
        head: The last layer, from `4 * width` features to outputs.
        input_shape: Height, width and channels of an image. Defaults to `(8, 8, 1)`.
        width: Channels of the first convolution. Defaults to 32.
        name: Name of the model. Defaults to `"small_cnn"`.

    Returns:
        A model from uint8 images, shape `(batch, height, width, channels)`, to the head's output.
    """
    inputs = keras.Input(input_shape, dtype="uint8", name="image")
    x = _last(_first(inputs, width), width)
    return keras.Model(inputs, head(x), name=name)


def small_cnn_branches(
    *, input_shape: tuple[int, int, int] = (8, 8, 1), width: int = 32
) -> tuple[keras.Model, Callable[[keras.KerasTensor], keras.KerasTensor]]:
    """Returns the parts of `small_cnn` for two branches: all but its last convolution, and that.

    Args:
        input_shape: As in `small_cnn`.
        width: As in `small_cnn`.

    Returns:
        See `bilateral.bilateral`; a branch has `4 * width` features.
    """
    inputs = keras.Input(input_shape, dtype="uint8", name="image")
    shared = keras.Model(inputs, _first(inputs, width), name="shared")
    return shared, lambda x: _last(x, width)


def _first(inputs, width):
    x = keras.layers.Rescaling(1 / 255)(inputs)
    return _convolution(_convolution(x, 1, width, 1), 2, 2 * width, 2)


def _last(x, width):
    x = _convolution(x, 3, 4 * width, 1)
    return keras.layers.GlobalAveragePooling2D(name="features")(x)


def _convolution(x, number, channels, stride):
    layers = keras.layers
    x = layers.Conv2D(
        channels, 3, strides=stride, padding="same", use_bias=False, name=f"conv{number}"
    )(x)
    x = layers.BatchNormalization(momentum=0.9, name=f"norm{number}")(x)
    return layers.Activation("relu", name=f"relu{number}")(x)
