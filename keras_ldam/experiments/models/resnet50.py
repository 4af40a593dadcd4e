"""The ResNet-50 of keras.applications, with a head from outside and raw pixels as input."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np

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
    plain = keras.applications.ResNet50(include_top=False, weights=None, input_shape=input_shape)
    if pretrained:
        _read_weights(plain, pretrained)
    images = keras.Input(input_shape, dtype="uint8", name="image")
    # In float32 under every policy: in bfloat16 a pixel minus the mean loses its last bit.
    normalization = keras.layers.Normalization(
        mean=MEAN, variance=np.square(STD), dtype="float32", name="normalization"
    )
    body = keras.models.clone_model(plain, clone_function=_clone)
    if pretrained:
        body.set_weights(plain.get_weights())
    x = body(normalization(images))
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(images, head(x), name=name)


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
        model.load_weights(path)
        assert before == [weight.shape for weight in model.get_weights()]
    except Exception as error:  # h5py and Keras each raise their own.
        reason = (str(error).strip() or repr(error)).splitlines()[0][:200]
        raise ValueError(
            "`pretrained` must hold the weights of keras.applications.ResNet50(include_top=False). "
            f"Received: {path}: {reason}"
        ) from None
    first = model.get_layer("conv1_conv")
    kernel, bias = first.get_weights()
    scale = np.array(STD, dtype=kernel.dtype)[None, None, :, None]
    first.set_weights([kernel[:, :, ::-1] * scale, bias])
