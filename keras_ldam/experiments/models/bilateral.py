"""Networks with two branches: as BBN trains them, and as they answer (Zhou et al., 2020).

    two images, α  →  shared(x_A) → conventional → f_A   ↘
                      shared(x_B) → rebalancing  → f_B   →  head [2α f_A, 2(1 - α) f_B]
    one image      →  shared(x)   → both branches        →  head [f_A, f_B]

The second is the first for two equal images at α = 1/2.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
from keras import ops

BRANCHES = ("conventional", "rebalancing")
"""Names of the branches, that of the image drawn uniformly first."""


def bilateral(
    shared: keras.Model,
    branch: Callable[[keras.KerasTensor], keras.KerasTensor],
    head: keras.layers.Layer,
) -> keras.Model:
    """Joins the parts of a network to the model that is trained.

    Args:
        shared: From images to what the branches read; called `"shared"`.
        branch: From that to features, by new layers in each call.
        head: The last layer, from the features of both branches to outputs.

    Returns:
        A model of three inputs: `uniform` and `reversed`, images of the two samplers, and `alpha`,
        shape `(batch, 1)`.
    """
    uniform, reversed_ = (
        keras.Input(shared.input.shape[1:], dtype=shared.input.dtype, name=name)
        for name in ("uniform", "reversed")
    )
    alpha = keras.Input((1,), dtype="float32", name="alpha")
    weights = 2.0 * alpha, 2.0 * (1.0 - alpha)
    features = []
    for name, images, weight in zip(BRANCHES, (uniform, reversed_), weights, strict=True):
        inputs = keras.Input(shared.output.shape[1:], dtype=shared.output.dtype)
        own = keras.Model(inputs, branch(inputs), name=name)
        features.append(weight * own(shared(images)))
    features = ops.concatenate(features, axis=-1)
    return keras.Model([uniform, reversed_, alpha], head(features), name="bilateral")


def is_bilateral(model: keras.Model) -> bool:
    """Whether a model is one of `bilateral`."""
    return {*BRANCHES, "shared"} <= {layer.name for layer in model.layers}


def one_image(model: keras.Model) -> keras.Model:
    """Returns the model that answers, of the same layers, for a model of `bilateral`.

    It is made anew in each call; outside of the scope of a strategy it computes on one device.
    """
    shared, *branches = (model.get_layer(name) for name in ("shared", *BRANCHES))
    images = keras.Input(shared.input.shape[1:], dtype=shared.input.dtype, name="images")
    x = shared(images)
    features = keras.layers.Concatenate(name="features")([branch(x) for branch in branches])
    return keras.Model(images, model.layers[-1](features), name=model.name)
