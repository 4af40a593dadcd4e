"""A multi-layer perceptron for vectors of numbers."""

from __future__ import annotations

import keras
import numpy as np


def mlp(
    *,
    head: keras.layers.Layer,
    examples: np.ndarray,
    width: int = 64,
    depth: int = 2,
    dropout: float = 0.2,
    name: str = "mlp",
) -> keras.Model:
    """Builds a perceptron that standardizes its input.

    Args:
        head: The last layer, from `width` features to outputs.
        examples: Training examples, shape `(n, features)`. Mean and variance of each feature become
            part of the model.
        width: Units of each hidden layer. Defaults to 64.
        depth: Number of hidden layers. Defaults to 2.
        dropout: Share of each hidden layer's units that are dropped in training. Defaults to 0.2.
        name: Name of the model. Defaults to `"mlp"`.

    Returns:
        A model from vectors, shape `(batch, features)`, to the head's output.

    Raises:
        ValueError: If a value of the examples is not finite.
    """
    if not np.isfinite(examples).all():
        row, column = np.argwhere(~np.isfinite(examples))[0]
        raise ValueError(
            "`examples` must be finite numbers. Received: "
            f"{examples[row, column]} for feature {column} of example {row}"
        )
    layers = keras.layers
    inputs = keras.Input(examples.shape[1:], name="vector")
    x = layers.Normalization(
        mean=examples.mean(axis=0), variance=examples.var(axis=0), dtype="float32", name="standard"
    )(inputs)
    for i in range(1, depth + 1):
        x = layers.Dense(width, activation="relu", name=f"dense{i}")(x)
        x = layers.Dropout(dropout, name=f"dropout{i}")(x)
    return keras.Model(inputs, head(x), name=name)
