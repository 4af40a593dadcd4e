"""A small convolutional network on whitened patches, which learns in few epochs."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ldam.layers import FusedBatchNormalization, RandomCropFlip

_PATCH = 2
_SMALLEST = 16


def whitened_cnn(
    *,
    head: keras.layers.Layer,
    images: np.ndarray,
    width: int = 32,
    padding: int = 2,
    seed: int | None = 0,
    dtype: Any = None,
) -> keras.Model:
    """Builds a fixed convolution that whitens patches, three blocks, and a maximum over the image.

    The first convolution is computed from training images: its filters are the principal components
    of patches of 2x2 pixels, each divided by its standard deviation, and their negatives. Only its
    biases are trained. A block is a 3x3 convolution, a maximum over 2x2 pixels, and a second
    convolution, each with batch normalization without scale, and ReLU; blocks have `width`,
    `2 * width` and `4 * width` channels. Convolutions pass their input on at the start: the first
    filters are the identity.

    Outside training each image is read twice, as it is and mirrored, and the features are the mean
    of both: test-time augmentation, which results must mention.

    With 32 channels it takes 20 million multiplications for an image of 32x32 pixels, in training,
    and ResNet-32 takes 69 million.

    Args:
        head: The last layer, from `4 * width` features to outputs, computing in float32.
        images: Training images that pixels are normalized and whitened by, uint8, shape
            `(n, height, width, channels)`, of at least 16x16 pixels.
        width: Channels of the first block. Defaults to 32.
        padding: Largest shift of training images, in pixels; they are mirrored at random too.
            Defaults to 2.
        seed: Seed of the augmentation, or `None` for a random one. Initial kernels follow
            `keras.utils.set_random_seed`. Defaults to 0.
        dtype: Keras dtype policy of the layers before the maximum. Defaults to the global policy.

    Returns:
        A model from uint8 images, shape `(batch, height, width, channels)`, to the head's output.

    Raises:
        ValueError: If the images are smaller than 16x16 pixels.

    References:

    - [Jordan, 2024](https://arxiv.org/abs/2404.00498): whitening, identity, batch normalization
      without scale, and the maximum between the two convolutions of a block
    """
    shape = images.shape[1:]
    if min(shape[:2]) < _SMALLEST:
        raise ValueError(
            f"network whitened_cnn needs images of at least {_SMALLEST}x{_SMALLEST} pixels. "
            f"Received: {shape[0]}x{shape[1]}"
        )
    layers = keras.layers
    mean = images.mean((0, 1, 2), dtype=np.float64)
    variance = np.maximum(images.var((0, 1, 2), dtype=np.float64), 1.0)  # One color is possible.
    filters = whitening((images - mean) / np.sqrt(variance))

    inputs = keras.Input(shape, dtype="uint8", name="images")
    x = RandomCropFlip(padding=padding, seed=seed, name="augmentation")(inputs)
    x = AddMirrored(name="add_mirrored")(x)
    x = layers.Normalization(mean=mean, variance=variance, dtype="float32", name="normalization")(x)
    whiten = FixedConv2D(filters.shape[-1], _PATCH, dtype=dtype, name="whitening")
    x = layers.Activation("relu", dtype=dtype, name="whitening_relu")(whiten(x))
    whiten.kernel.assign(filters)
    for block in range(3):
        channels = width * 2**block
        x = _convolution(x, channels, dtype=dtype, name=f"block{block + 1}_first")
        x = layers.MaxPooling2D(dtype=dtype, name=f"block{block + 1}_pooling")(x)
        x = _normalized(x, dtype=dtype, name=f"block{block + 1}_first")
        x = _convolution(x, channels, dtype=dtype, name=f"block{block + 1}_second")
        x = _normalized(x, dtype=dtype, name=f"block{block + 1}_second")
    x = layers.GlobalMaxPooling2D(dtype="float32", name="maximum")(x)
    x = MeanWithMirrored(dtype="float32", name="features")(x)
    return keras.Model(inputs, head(x), name="whitened_cnn")


@keras.saving.register_keras_serializable(package="keras_ldam")
class FixedConv2D(keras.layers.Conv2D):
    """A convolution whose biases alone are trained; see `keras.layers.Conv2D` for its arguments."""

    def add_weight(self, *args: Any, **kwargs: Any) -> Any:
        """Adds a weight; the kernel stays fixed when a model is frozen and unfrozen."""
        kwargs["trainable"] = kwargs.get("name") == "bias"
        return super().add_weight(*args, **kwargs)


@keras.saving.register_keras_serializable(package="keras_ldam")
class AddMirrored(keras.layers.Layer):
    """Outside training, appends to a batch of images their mirror images, left to right.

    Args:
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Images, shape `(batch, height, width, channels)`.
        training: Whether to return them as they are. Defaults to no.

    Returns:
        Images, shape `(2 * batch, height, width, channels)`, or the same ones while training.
    """

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the images and their mirror images."""
        return inputs if training else ops.concatenate([inputs, inputs[:, :, ::-1]], axis=0)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns the shape with an unknown batch size."""
        return (None, *input_shape[1:])


@keras.saving.register_keras_serializable(package="keras_ldam")
class MeanWithMirrored(keras.layers.Layer):
    """Outside training, averages what comes of images and of their mirror images.

    Args:
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: What comes of the batch of an `AddMirrored`, shape `(2 * batch, …)`.
        training: As that layer has it. Defaults to no.

    Returns:
        A tensor of shape `(batch, …)`.
    """

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the mean of both halves of the batch."""
        if training:
            return inputs
        images, mirrored = ops.split(inputs, 2, axis=0)
        return (images + mirrored) / 2

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns the shape with an unknown batch size."""
        return (None, *input_shape[1:])


def whitening(images: np.ndarray, *, smallest: float = 5e-4) -> np.ndarray:
    """Returns filters whose responses to patches of some images are uncorrelated with variance 1.

    Args:
        images: Normalized images, shape `(n, height, width, channels)`.
        smallest: What is added to each variance, so that noise is not amplified without limit.
            Defaults to 5e-4.

    Returns:
        A kernel, float32, shape `(2, 2, channels, 8 * channels)`: the principal components, those
        of most variance first, and then their negatives.
    """
    patches = np.lib.stride_tricks.sliding_window_view(images, (_PATCH, _PATCH), axis=(1, 2))
    patches = np.moveaxis(patches[:, ::3, ::3], 3, -1)  # Not all of them: they overlap.
    kernel_shape = patches.shape[3:]
    patches = patches.reshape(-1, np.prod(kernel_shape))
    variances, components = np.linalg.eigh(patches.T @ patches / len(patches))
    components = (components / np.sqrt(variances + smallest))[:, ::-1]
    filters = np.concatenate([components, -components], axis=1)
    return filters.reshape(*kernel_shape, -1).astype("float32")


def _convolution(x, channels, *, dtype, name):
    layer = keras.layers.Conv2D(
        channels,
        3,
        padding="same",
        use_bias=False,
        # Uniform up to 1 / √fan-in.
        kernel_initializer=keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform"),
        dtype=dtype,
        name=f"{name}_convolution",
    )
    y = layer(x)
    kernel = ops.convert_to_numpy(layer.kernel).copy()
    passed = np.arange(min(x.shape[-1], channels))
    kernel[..., passed] = 0
    kernel[1, 1, passed, passed] = 1
    layer.kernel.assign(kernel)
    return y


def _normalized(x, *, dtype, name):
    x = FusedBatchNormalization(
        momentum=0.9, epsilon=1e-5, scale=False, dtype=dtype, name=f"{name}_normalization"
    )(x)
    return keras.layers.Activation("relu", dtype=dtype, name=f"{name}_relu")(x)
