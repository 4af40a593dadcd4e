"""What the words, bigrams and trigrams of a text say of its class, from word ids, in a network.

So the network reads what one without n-grams reads, and is exported and served alike.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ldam.experiments import ngrams


@keras.saving.register_keras_serializable(package="keras_ldam")
class NGramEvidence(keras.layers.Layer):
    """Sums of the weights of a text's words, bigrams and trigrams, for and against each class.

    Each n-gram counts once in a text. Positive and negative weights are summed apart, as are words,
    bigrams and trigrams, and divided by the square root of the number of the text's known n-grams.
    Nothing is learned: vectors of rare n-grams would memorize the training texts.

    Args:
        vocabulary_size: Number of word ids.
        num_bigrams: Number of known bigrams.
        num_trigrams: Number of known trigrams.
        columns: Columns of `NGrams.weights`. Defaults to 1.
        **kwargs: Further arguments of `keras.layers.Layer`.

    Call arguments:
        words: Word ids with zeros after the last word, int32, shape `(batch, time)`.
        training: Whether to leave out what the texts of the same fold say; see `ngrams.count`.

    Returns:
        A tensor, shape `(batch, 6 * columns)`.
    """

    def __init__(
        self,
        vocabulary_size: int,
        num_bigrams: int,
        num_trigrams: int,
        columns: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.vocabulary_size, self.columns = vocabulary_size, columns
        self.num_bigrams, self.num_trigrams = num_bigrams, num_trigrams
        self.size = vocabulary_size + num_bigrams + num_trigrams

    def build(self, words_shape: tuple) -> None:
        """Creates what `assign` fills."""

        def fixed(name, shape, dtype):
            return self.add_weight(
                name=name,
                shape=shape,
                dtype=dtype,
                initializer="zeros",
                trainable=False,
                autocast=False,
            )

        # One more key than any n-gram has: what is not found is found there.
        self.bigrams = fixed("bigrams", (self.num_bigrams + 1,), "int32")
        self.trigrams = fixed("trigrams", (self.num_trigrams + 1,), "int32")
        shape = (ngrams.FOLDS + 1) * self.size, self.columns
        self.evidence = fixed("evidence", shape, "float32")

    def assign(self, known: ngrams.NGrams) -> None:
        """Sets the known n-grams."""
        last = np.array([ngrams.LARGEST], np.int32)
        self.bigrams.assign(np.append(known.bigrams, last))
        self.trigrams.assign(np.append(known.trigrams, last))
        self.evidence.assign(known.weights.reshape(self.evidence.shape))

    def call(self, words: Any, training: bool = False) -> Any:
        """Returns the sums."""
        words = ops.cast(words, "int32")
        numbers = self._numbers(words)
        fold = ops.sum(words % ngrams.FOLDS, axis=1, keepdims=True) % ngrams.FOLDS
        row = fold if training else ngrams.FOLDS
        weights = ops.take(self.evidence, row * self.size + numbers, axis=0)
        first = self.vocabulary_size
        sums = []
        for start, end in (
            (0, first),
            (first, first + self.num_bigrams),
            (first + self.num_bigrams, self.size),
        ):
            of_order = ops.cast((numbers >= start) & (numbers < end), "float32")[:, :, None]
            for part in (ops.maximum(weights, 0.0), ops.minimum(weights, 0.0)):
                sums.append(ops.sum(part * of_order, axis=1))
        known = ops.sum(ops.cast(numbers > 0, "float32"), axis=1, keepdims=True)
        sums = ops.concatenate(sums, axis=1) / ops.sqrt(ops.maximum(known, 1.0))
        return ops.cast(sums, self.compute_dtype)

    def compute_output_shape(self, words_shape: tuple) -> tuple:
        """Returns the shape of the sums."""
        return (words_shape[0], 6 * self.columns)

    def _numbers(self, words):
        """Numbers as in `NGrams`, each once in a text; zeros elsewhere."""
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
        return ops.concatenate([numbers[:, :1], ops.where(repeated, 0, numbers[:, 1:])], axis=1)

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
            "columns": self.columns,
        }
