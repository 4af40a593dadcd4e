"""A bag of weighted words, bigrams and trigrams, made of word ids within the network.

So the network reads what one without n-grams reads, and is exported and served alike.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ldam.experiments import ngrams


@keras.saving.register_keras_serializable(package="keras_ldam")
class KnownNGrams(keras.layers.Layer):
    """Numbers and weights of the words, bigrams and trigrams of texts, each once in a text.

    Args:
        vocabulary_size: Number of word ids.
        num_bigrams: Number of known bigrams.
        num_trigrams: Number of known trigrams.
        **kwargs: Further arguments of `keras.layers.Layer`.

    Call arguments:
        words: Word ids with zeros after the last word, int32, shape `(batch, time)`.

    Returns:
        Numbers as in `NGrams`, int32, and weights, both of shape `(batch, 3 * time - 3)`, or
        `(batch, 1)` for one word. Both are zero at padding, unknown words, unknown n-grams and
        repetitions.
    """

    def __init__(
        self, vocabulary_size: int, num_bigrams: int, num_trigrams: int, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.vocabulary_size = vocabulary_size
        self.num_bigrams, self.num_trigrams = num_bigrams, num_trigrams

    def build(self, words_shape: tuple) -> None:
        """Creates what `assign` fills."""

        def fixed(name, size, dtype):
            return self.add_weight(
                name=name, shape=(size,), dtype=dtype, initializer="zeros", trainable=False
            )

        # One more key than any n-gram has: what is not found is found there.
        self.bigrams = fixed("bigrams", self.num_bigrams + 1, "int32")
        self.trigrams = fixed("trigrams", self.num_trigrams + 1, "int32")
        size = self.vocabulary_size + self.num_bigrams + self.num_trigrams
        self.weights_of = fixed("weights", size, "float32")

    def assign(self, known: ngrams.NGrams) -> None:
        """Sets the known n-grams."""
        last = np.array([ngrams.LARGEST], np.int32)
        self.bigrams.assign(np.append(known.bigrams, last))
        self.trigrams.assign(np.append(known.trigrams, last))
        self.weights_of.assign(known.weights)

    def call(self, words: Any) -> tuple[Any, Any]:
        """Returns numbers and weights."""
        words = ops.cast(words, "int32")
        known = words >= 2
        first = self.vocabulary_size
        numbers = [ops.where(known, words, 0)]
        place, found = self._looked_up(
            self.bigrams, words[:, :-1], words[:, 1:], known[:, :-1] & known[:, 1:]
        )
        numbers.append(ops.where(found, first + place, 0))
        place, found = self._looked_up(
            self.trigrams, place[:, :-1], words[:, 2:], found[:, :-1] & known[:, 2:]
        )
        numbers.append(ops.where(found, first + self.num_bigrams + place, 0))
        numbers = ops.sort(ops.concatenate(numbers, axis=1), axis=1)
        repeated = numbers[:, 1:] == numbers[:, :-1]
        numbers = ops.concatenate([numbers[:, :1], ops.where(repeated, 0, numbers[:, 1:])], axis=1)
        return numbers, ops.take(self.weights_of, numbers, axis=0)

    def compute_output_spec(self, words: Any) -> tuple[Any, Any]:
        """Returns the forms of numbers and weights."""
        shape = (words.shape[0], None)
        return tuple(keras.KerasTensor(shape, dtype) for dtype in ("int32", self.compute_dtype))

    def _looked_up(self, keys, before, word, possible):
        """Number of each n-gram, and whether it is known; `before` is the number of its start."""
        key = ops.where(possible, before * self.vocabulary_size + word, 0)
        place = ops.searchsorted(keys, ops.reshape(key, (-1,)))
        place = ops.reshape(ops.cast(place, "int32"), ops.shape(key))
        return place, possible & (ops.take(keys, place, axis=0) == key)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal layer."""
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "num_bigrams": self.num_bigrams,
            "num_trigrams": self.num_trigrams,
        }


@keras.saving.register_keras_serializable(package="keras_ldam")
class WeightedBag(keras.layers.Layer):
    """A ReLU layer on a weighted bag: ReLU(b + Σ_i w_i v_i), with a learned vector v_i for each i.

    Args:
        size: How many different things there are.
        units: Size of the output.
        **kwargs: Further arguments of `keras.layers.Layer`.

    Call arguments:
        numbers: Which things, from 0 to `size - 1`, shape `(batch, n)`.
        weights: Their weights w, shape `(batch, n)`.

    Returns:
        A tensor, shape `(batch, units)`.
    """

    def __init__(self, size: int, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size, self.units = size, units

    def build(self, numbers_shape: tuple, weights_shape: tuple) -> None:
        """Creates the vectors and b."""
        self.vectors = self.add_weight(
            name="vectors", shape=(self.size, self.units), initializer="uniform"
        )
        self.bias = self.add_weight(name="bias", shape=(self.units,), initializer="zeros")

    def call(self, numbers: Any, weights: Any) -> Any:
        """Returns the output."""
        vectors = ops.take(self.vectors, numbers, axis=0)
        return ops.relu(ops.matmul(weights[:, None, :], vectors)[:, 0] + self.bias)

    def compute_output_shape(self, numbers_shape: tuple, weights_shape: tuple) -> tuple:
        """Returns the shape of the output."""
        return (numbers_shape[0], self.units)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal layer."""
        return {**super().get_config(), "size": self.size, "units": self.units}
