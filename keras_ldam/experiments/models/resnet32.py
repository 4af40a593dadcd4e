"""The CIFAR ResNet-32 of He et al. (2016), as the LDAM experiments train it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from keras_ldam.layers import FusedBatchNormalization, RandomCropFlip

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2023, 0.1994, 0.2010)

_STAGES = (16, 32, 64)
_BLOCKS_PER_STAGE = 5
_BLOCKS = tuple((stage, block) for stage in (1, 2, 3) for block in range(1, _BLOCKS_PER_STAGE + 1))


def resnet32(
    *,
    head: layers.Layer,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    mean: Sequence[float] = CIFAR_MEAN,
    std: Sequence[float] = CIFAR_STD,
    augment: bool = True,
    padding: int = 4,
    seed: int | None = 0,
    dtype: Any = None,
) -> keras.Model:
    """Builds the CIFAR ResNet-32, from raw pixels to the outputs of `head`.

    One 3x3 convolution and three stages of five basic blocks with 16, 32 and 64 channels;
    shortcuts without parameters ("option A": every second pixel, new channels zero);
    global average pooling to 64 features; `head`. With a `Dense` head for ten classes it has
    464,154 trainable parameters.

    As in PyTorch, and unlike Keras' defaults: convolutions of stride 2 pad one pixel on each
    side, so their windows are centered on the pixels that the shortcut keeps; kernels are
    drawn from a normal distribution that is not truncated; batch normalization has momentum
    0.9, epsilon 1e-5 and an unbiased moving variance (the last on the TensorFlow backend).

    Augmentation and normalization of the pixels are part of the model. It takes images as
    they are stored, and augmentation is on in training only.

    Args:
        head: The last layer, from 64 features to outputs, computing in float32: give it
            `dtype="float32"` under mixed precision. The published recipe draws the kernel of
            a `Dense` head with `kaiming_normal()`.
        input_shape: Height, width and channels of an image. Defaults to `(32, 32, 3)`.
        mean: Mean per channel, of pixels scaled to [0, 1]. Defaults to that of CIFAR-10.
        std: Standard deviation per channel, likewise. Defaults to that of the official code.
        augment: Whether training images are shifted and mirrored at random. Defaults to
            `True`.
        padding: Largest shift in pixels. Defaults to 4.
        seed: Seed of kernels and augmentation, or `None` for a random one. Defaults to 0.
        dtype: Keras dtype policy of the layers before the pooling, such as
            `"mixed_bfloat16"`. Defaults to the global policy.

    Returns:
        A functional model. Inputs: uint8 images, shape `(batch, *input_shape)`; floats are cut to
        whole numbers, so those from 0 to 1 would all be black. The layer `"features"` has the 64
        features, in float32.

    Raises:
        ValueError: If `head` does not compute in float32, or `mean` or `std` does not have
            one value per channel.

    Example:

    >>> model = resnet32(head=keras.layers.Dense(10, dtype="float32"))
    >>> sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    464154

    References:

    - [He et al., 2016](https://arxiv.org/abs/1512.03385), section 4.2
    - [Cao et al., 2019](https://arxiv.org/abs/1906.07413), appendix B
    """
    if head.compute_dtype not in ("float32", "float64"):
        raise ValueError(
            "`head` must compute in float32, or small differences between classes are lost; "
            f'give it `dtype="float32"`. Received: {head} with {head.compute_dtype}'
        )
    seeds = _distinct_seeds(seed)
    images = keras.Input(input_shape, dtype="uint8", name="images")
    x = _stem(images, mean, std, padding=padding if augment else None, seeds=seeds, dtype=dtype)
    x = _features(_blocks(x, _BLOCKS, seeds=seeds, dtype=dtype))
    return keras.Model(images, head(x), name="resnet32")


def resnet32_branches(
    *,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    mean: Sequence[float] = CIFAR_MEAN,
    std: Sequence[float] = CIFAR_STD,
    padding: int = 4,
    seed: int | None = 0,
    dtype: Any = None,
) -> tuple[keras.Model, Callable[[keras.KerasTensor], keras.KerasTensor]]:
    """Returns the parts of ResNet-32 for two branches: all but its last block, and that block.

    What is shared includes augmentation and normalization of the pixels. A branch has 64 features.

    Args:
        input_shape: As in `resnet32`.
        mean: As in `resnet32`.
        std: As in `resnet32`.
        padding: As in `resnet32`.
        seed: As in `resnet32`.
        dtype: As in `resnet32`.

    Returns:
        See `bilateral.bilateral`.

    Raises:
        ValueError: As `resnet32`.

    References:

    - [Zhou et al., 2020](https://arxiv.org/abs/1912.02413), section 4.2
    """
    seeds = _distinct_seeds(seed)
    images = keras.Input(input_shape, dtype="uint8", name="images")
    x = _stem(images, mean, std, padding=padding, seeds=seeds, dtype=dtype)
    x = _blocks(x, _BLOCKS[:-1], seeds=seeds, dtype=dtype)
    shared = keras.Model(images, x, name="shared")

    def branch(x: keras.KerasTensor) -> keras.KerasTensor:
        return _features(_blocks(x, _BLOCKS[-1:], seeds=seeds, dtype=dtype))

    return shared, branch


def _stem(
    images: Any,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    padding: int | None,
    seeds: Iterator[int | None],
    dtype: Any,
) -> keras.KerasTensor:
    """From raw images, augmented unless `padding` is None, to the first 16 channels."""
    for name, value in (("mean", mean), ("std", std)):
        if len(value) != images.shape[-1]:
            raise ValueError(
                f"`{name}` must have one value for each of the {images.shape[-1]} channels. "
                f"Received: {name}={value}"
            )
    x = images
    if padding is not None:
        x = RandomCropFlip(padding=padding, seed=next(seeds), name="augmentation")(x)
    x = layers.Normalization(
        mean=[255.0 * value for value in mean],
        variance=[(255.0 * value) ** 2 for value in std],
        # bfloat16 would round the mean by up to 0.4 %.
        dtype="float32",
        name="normalization",
    )(x)
    x = _convolution(x, _STAGES[0], seed=next(seeds), dtype=dtype, name="stem")
    return layers.Activation("relu", dtype=dtype, name="stem_relu")(x)


def _blocks(
    x: Any, blocks: Sequence[tuple[int, int]], *, seeds: Iterator[int | None], dtype: Any
) -> keras.KerasTensor:
    """Some of the blocks, each given by its stage and its number there."""
    for stage, block in blocks:
        x = _basic_block(
            x,
            _STAGES[stage - 1],
            strides=2 if stage > 1 and block == 1 else 1,
            seeds=seeds,
            dtype=dtype,
            name=f"stage{stage}_block{block}",
        )
    return x


def _features(x: Any) -> keras.KerasTensor:
    return layers.GlobalAveragePooling2D(dtype="float32", name="features")(x)


def kaiming_normal(seed: int | None = None) -> keras.initializers.Initializer:
    """Makes the initializer that PyTorch calls `kaiming_normal_`.

    Normal with standard deviation √(2 / fan-in), not truncated, unlike
    `keras.initializers.HeNormal`.

    Args:
        seed: Integer, or `None` for a random one. One initializer with a seed gives equal
            kernels to layers of equal shape. Defaults to `None`.

    Returns:
        A Keras initializer.

    Example:

    >>> head = keras.layers.Dense(10, kernel_initializer=kaiming_normal(0), dtype="float32")

    References:

    - [He et al., 2015](https://arxiv.org/abs/1502.01852)
    """
    return keras.initializers.VarianceScaling(
        scale=2.0, mode="fan_in", distribution="untruncated_normal", seed=seed
    )


@keras.saving.register_keras_serializable(package="keras_ldam")
class PaddedShortcut(layers.Layer):
    """Halves the resolution and adds channels of zeros, without parameters.

    The "option A" shortcut of residual networks, for a block of stride 2: it keeps every
    second pixel, from the first on, and puts half of the new channels before and half after
    the old ones.

    Args:
        filters: Channels of the output: those of the input plus an even number.
        **kwargs: Further arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor, shape `(batch, height, width, channels)`.

    Returns:
        A tensor, shape `(batch, ceil(height / 2), ceil(width / 2), filters)`.

    Raises:
        ValueError: If the number of new channels is negative or odd.

    Example:

    >>> PaddedShortcut(32)(np.ones((1, 8, 8, 16), "float32")).shape == (1, 4, 4, 32)
    True

    References:

    - [He et al., 2016](https://arxiv.org/abs/1512.03385), sections 3.3 and 4.2
    """

    def __init__(self, filters: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters = int(filters)

    def build(self, input_shape: tuple) -> None:
        """Checks that the new channels can be split in two halves."""
        new = self.filters - input_shape[-1]
        if new < 0 or new % 2:
            raise ValueError(
                "`filters` must be the input's channels plus an even number. "
                f"Received: filters={self.filters} for {input_shape[-1]} channels"
            )
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        """Returns every second pixel with the new channels around the old ones."""
        side = (self.filters - inputs.shape[-1]) // 2
        # Pooling over single pixels is the slice [:, ::2, ::2], whose gradient is several
        # times faster than that of a strided slice on the TensorFlow backend.
        kept = ops.average_pool(inputs, 1, strides=2, data_format="channels_last")
        return ops.pad(kept, ((0, 0), (0, 0), (0, 0), (side, side)))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns the shape with half the resolution and all channels."""
        batch, height, width, _ = input_shape
        half = [None if size is None else (size + 1) // 2 for size in (height, width)]
        return (batch, *half, self.filters)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal layer."""
        return {**super().get_config(), "filters": self.filters}


def _basic_block(
    x: Any, filters: int, *, strides: int, seeds: Any, dtype: Any, name: str
) -> keras.KerasTensor:
    shortcut = x
    if strides > 1:
        shortcut = PaddedShortcut(filters, dtype=dtype, name=f"{name}_shortcut")(x)
    x = _convolution(
        x, filters, strides=strides, seed=next(seeds), dtype=dtype, name=f"{name}_first"
    )
    x = layers.Activation("relu", dtype=dtype, name=f"{name}_first_relu")(x)
    x = _convolution(x, filters, seed=next(seeds), dtype=dtype, name=f"{name}_second")
    x = layers.Add(dtype=dtype, name=f"{name}_add")([x, shortcut])
    return layers.Activation("relu", dtype=dtype, name=f"{name}_relu")(x)


def _convolution(
    x: Any, filters: int, *, strides: int = 1, seed: int | None, dtype: Any, name: str
) -> keras.KerasTensor:
    """3x3 convolution without bias and its batch normalization."""
    if strides > 1:
        # "same" would pad the bottom and the right only.
        x = layers.ZeroPadding2D(1, dtype=dtype, name=f"{name}_padding")(x)
    x = layers.Conv2D(
        filters,
        3,
        strides=strides,
        padding="same" if strides == 1 else "valid",
        use_bias=False,
        kernel_initializer=kaiming_normal(seed),
        dtype=dtype,
        name=f"{name}_convolution",
    )(x)
    return FusedBatchNormalization(
        momentum=0.9, epsilon=1e-5, dtype=dtype, name=f"{name}_normalization"
    )(x)


def _distinct_seeds(seed: int | None) -> Iterator[int | None]:
    """Yields independent seeds, so that runs with neighboring seeds share no kernel."""
    if seed is None:
        while True:
            yield None
    count = 2 + 2 * (len(_BLOCKS) + 1)  # Enough for a second last block.
    for word in np.random.SeedSequence(seed).generate_state(count):
        yield int(word >> 1)
