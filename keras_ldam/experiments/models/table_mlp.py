"""A multi-layer perceptron for rows of numbers and categories, some of them missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="keras_ldam")
class TableFeatures(keras.layers.Layer):
    """Makes features of numbers with gaps and of ids of categories, both in one vector.

    A number x gives its standard score, cut off at ±5; how far it has come through each of the
    bins between the edges e_b, min(1, max(0, (x - e_b) / (e_{b+1} - e_b))), which makes nothing of
    the scale of skewed numbers; and whether it is missing, where training rows miss it. A missing
    number takes the place of the mean, and has come through no bin. A category gives a vector that
    is trained.

    Args:
        numbers: Number of numbers, which come first.
        ids: Number of ids of each category column.
        bins: Number of bins of a number. Defaults to 16.
        size: Length of a category's vector. Defaults to 8.
        **kwargs: Further arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: float32 of shape `(batch, numbers + len(ids))`, NaN for a missing number.

    Returns:
        A tensor of shape `(batch, features)`.

    References:
        Gorishniy et al., 2022, "On Embeddings for Numerical Features in Tabular Deep Learning".
    """

    def __init__(
        self,
        numbers: int,
        ids: Sequence[int] = (),
        bins: int = 16,
        size: int = 8,
        **kwargs: Any,
    ) -> None:
        # In bfloat16, to which inputs would be cast, ids above 256 would be rounded.
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.numbers, self.ids, self.bins, self.size = numbers, list(ids), bins, size
        # All columns share one table, each with its own rows.
        self.vectors = keras.layers.Embedding(sum(self.ids), size, name="vectors") if ids else None

    def build(self, inputs_shape: tuple) -> None:
        """Makes the statistics, which `adapt` sets, and the vectors."""

        def statistic(name: str, *shape: int) -> Any:
            return self.add_weight(
                shape=(self.numbers, *shape), initializer="zeros", trainable=False, name=name
            )

        self.mean, self.factor, self.missing = map(statistic, ("mean", "factor", "missing"))
        self.edges, self.slopes = statistic("edges", self.bins), statistic("slopes", self.bins)
        if self.vectors is not None:
            self.vectors.build((None, len(self.ids)))
        self.built = True

    def adapt(self, examples: np.ndarray) -> None:
        """Sets the statistics of the numbers to those of training rows.

        Args:
            examples: Some training rows, shape `(n, numbers + len(ids))`.
        """
        found = {"mean": [], "factor": [], "missing": [], "edges": [], "slopes": []}
        for column in np.asarray(examples[:, : self.numbers], np.float64).T:
            known = np.sort(column[np.isfinite(column)])
            if not len(known):
                known = np.zeros(1)
            deviation = known.std()
            # Half of the edges by rows and half by values: a mass at zero leaves bins for the rest.
            shares = np.linspace(0, 1, self.bins // 2 + 1)
            distinct = np.unique(known)
            edges = np.sort(
                np.concatenate([np.quantile(known, shares), np.quantile(distinct, shares[1:])])
            )[: self.bins + 1]
            widths = np.diff(edges)
            # float32 cannot tell values apart that are much closer than they are large.
            wide = widths > 1e-6 * np.maximum(np.abs(edges[:-1]), np.abs(edges[1:]))
            found["mean"].append(known.mean())
            found["factor"].append(1 / deviation if deviation > 0 else 0.0)
            found["missing"].append(float(not np.isfinite(column).all()))
            found["edges"].append(edges[:-1])
            found["slopes"].append(np.where(wide, 1 / np.where(wide, widths, 1), 0))
        for name, values in found.items():
            getattr(self, name).assign(
                np.asarray(values, np.float32).reshape(getattr(self, name).shape)
            )

    def call(self, inputs: Any) -> Any:
        """Returns the features."""
        features = []
        if self.numbers:
            # Within these bounds no difference of two numbers is infinite.
            given = ops.clip(inputs[:, : self.numbers], -1e37, 1e37)
            absent, mean = ops.isnan(given), ops.convert_to_tensor(self.mean)
            x = ops.where(absent, mean, given)
            features.append(ops.clip((x - mean) * self.factor, -5.0, 5.0))
            through = ops.clip((x[:, :, None] - self.edges) * self.slopes, 0.0, 1.0)
            through = ops.where(absent[:, :, None], 0.0, through)
            features.append(ops.reshape(through, (-1, self.numbers * self.bins)))
            features.append(ops.cast(absent, "float32") * self.missing)
        if self.vectors is not None:
            starts = np.cumsum([0, *self.ids[:-1]]).astype("int32")
            ids = ops.cast(inputs[:, self.numbers :], "int32") + starts
            vectors = self.vectors(ids)
            features.append(ops.reshape(vectors, (-1, len(self.ids) * self.size)))
        return ops.concatenate(features, axis=-1)

    def compute_output_shape(self, inputs_shape: tuple) -> tuple:
        """Returns the shape of the features."""
        return (inputs_shape[0], self.numbers * (self.bins + 2) + len(self.ids) * self.size)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal layer."""
        settings = {name: getattr(self, name) for name in ("numbers", "ids", "bins", "size")}
        return {**super().get_config(), **settings}


def table_mlp(
    *,
    head: keras.layers.Layer,
    examples: np.ndarray,
    numbers: int,
    ids: Sequence[int] = (),
    width: int = 128,
    depth: int = 2,
    dropout: float = 0.2,
    name: str = "table_mlp",
) -> keras.Model:
    """Builds a perceptron over `TableFeatures`.

    Args:
        head: The last layer, from `width` features to outputs.
        examples: Some training rows, shape `(n, numbers + len(ids))`, with NaN for missing numbers;
            their statistics become part of the model.
        numbers: Number of numbers in a row, which come first.
        ids: Number of ids of each category column, which come after them.
        width: Units of each hidden layer. Defaults to 128.
        depth: Number of hidden layers. Defaults to 2.
        dropout: Share of each hidden layer's units that are dropped in training. Defaults to 0.2.
        name: Name of the model. Defaults to `"table_mlp"`.

    Returns:
        A model from rows, shape `(batch, numbers + len(ids))`, to the head's output.
    """
    inputs = keras.Input((numbers + len(ids),), dtype="float32", name="row")
    features = TableFeatures(numbers, ids, name="features")
    x = features(inputs)
    features.adapt(examples)
    for i in range(1, depth + 1):
        x = keras.layers.Dense(width, activation="relu", name=f"dense{i}")(x)
        x = keras.layers.Dropout(dropout, name=f"dropout{i}")(x)
    return keras.Model(inputs, head(x), name=name)
