"""The ResNet-50 of keras.applications, with a head from outside and raw pixels as input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from keras_ldam import files
from keras_ldam.experiments.saved_models import check_unpacked
from keras_ldam.layers import FusedBatchNormalization

MEAN = (123.68, 116.779, 103.939)
STD = (58.393, 57.12, 57.375)
"""Mean and standard deviation of ImageNet's red, green and blue pixels, 0 to 255."""


def resnet50(
    *,
    head: keras.layers.Layer,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    pretrained: str = "",
    name: str = "resnet50",
) -> keras.Model:
    """Builds ResNet-50, with 2,048 features from an average over the image.

    The network of `keras.applications.ResNet50`, with the same layer names and the same number of
    parameters, 23,587,712 without the head. It normalizes batches by `FusedBatchNormalization`,
    with the momentum of the published recipes, 0.9.

    Args:
        head: The last layer, from 2,048 features to outputs.
        input_shape: Height, width and 3 channels of an image, each side at least 32. Defaults to
            `(224, 224, 3)`.
        pretrained: A file with the weights of `keras.applications.ResNet50(include_top=False)`,
            such as the one that Keras publishes for ImageNet. They expect blue before green before
            red, and pixels that are not divided by their deviation; the first kernel is reversed
            and scaled to match, so the network computes the same features. Empty for random
            weights, which is the default.
        name: Name of the model. Defaults to `"resnet50"`.

    Returns:
        A model from uint8 images, shape `(batch, height, width, 3)`, red first, to the head's
        output.

    Raises:
        ValueError: If the file does not exist or holds other weights.
    """
    plain = _plain(input_shape, pretrained)
    images = keras.Input(input_shape, dtype="uint8", name="image")
    x = _copy(plain, pretrained)(_normalized(images))
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(images, head(x), name=name)


def resnet50_branches(
    *, input_shape: tuple[int, int, int] = (224, 224, 3), pretrained: str = ""
) -> tuple[keras.Model, Callable[[keras.KerasTensor], keras.KerasTensor]]:
    """Returns the parts of ResNet-50 for two branches: all but its last bottleneck, and that one.

    Args:
        input_shape: As in `resnet50`.
        pretrained: As in `resnet50`; both branches start from the weights of the last bottleneck.

    Returns:
        See `bilateral.bilateral`; a branch has 2,048 features.

    Raises:
        ValueError: As `resnet50`.

    References:
        Zhou et al., 2020, "BBN: Bilateral-Branch Network with Cumulative Learning for Long-Tailed
        Visual Recognition", section 4.2.
    """
    plain = _plain(input_shape, pretrained)
    fork = plain.get_layer("conv5_block2_out").output
    images = keras.Input(input_shape, dtype="uint8", name="image")
    body = _copy(keras.Model(plain.input, fork), pretrained)
    shared = keras.Model(images, body(_normalized(images)), name="shared")

    def branch(x):
        last = _copy(keras.Model(fork, plain.output), pretrained)
        return keras.layers.GlobalAveragePooling2D(name="features")(last(x))

    return shared, branch


def _plain(input_shape, pretrained):
    plain = keras.applications.ResNet50(include_top=False, weights=None, input_shape=input_shape)
    if pretrained:
        _read_weights(plain, pretrained)
    return plain


def _normalized(images):
    # In float32 under every policy: in bfloat16 a pixel minus the mean loses its last bit.
    return keras.layers.Normalization(
        mean=MEAN, variance=np.square(STD), dtype="float32", name="normalization"
    )(images)


def _copy(part, pretrained):
    """A part of the network with our batch normalization."""
    copy = keras.models.clone_model(part, clone_function=_clone)
    if pretrained:
        copy.set_weights(part.get_weights())
    return copy


def _clone(layer):
    config = layer.get_config()
    if isinstance(layer, keras.layers.BatchNormalization):
        return FusedBatchNormalization.from_config({**config, "momentum": 0.9})
    return layer.__class__.from_config(config)


def _read_weights(model, path):
    if not Path(path).is_file():
        raise ValueError(f"`pretrained` must be an existing file. Received: pretrained={path!r}")
    before = [weight.shape for weight in model.get_weights()]
    try:
        check_unpacked(Path(path))
        model.load_weights(path)
        assert before == [weight.shape for weight in model.get_weights()]
    except Exception as error:  # h5py and Keras each raise their own.
        reason = files.reason(error)
        raise ValueError(
            "`pretrained` must hold the weights of keras.applications.ResNet50(include_top=False). "
            f"Received: {path}: {reason}"
        ) from None
    first = model.get_layer("conv1_conv")
    kernel, bias = first.get_weights()
    scale = np.array(STD, dtype=kernel.dtype)[None, None, :, None]
    first.set_weights([kernel[:, :, ::-1] * scale, bias])
