"""A small convolutional network for small images."""

from __future__ import annotations

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
    layers = keras.layers
    inputs = keras.Input(input_shape, dtype="uint8", name="image")
    x = layers.Rescaling(1 / 255)(inputs)
    for i, (channels, stride) in enumerate([(width, 1), (2 * width, 2), (4 * width, 1)]):
        x = layers.Conv2D(
            channels, 3, strides=stride, padding="same", use_bias=False, name=f"conv{i + 1}"
        )(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"norm{i + 1}")(x)
        x = layers.Activation("relu", name=f"relu{i + 1}")(x)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(inputs, head(x), name=name)
