"""From texts to word ids, in TensorFlow's graph, so that it can be exported with the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from keras_ldam import extras

with extras.needed("experiments", by="reading texts"):
    import tensorflow as tf
    import tensorflow_text as tf_text

PADDING, UNKNOWN = 0, 1
"""Ids of no word."""


def split_words(texts: tf.Tensor) -> tf.RaggedTensor:
    """Splits texts into lower-case words, numbers, and `!` and `?`; markup is dropped.

    Args:
        texts: Strings, shape `(batch,)`. Bytes that are not UTF-8 separate words.

    Returns:
        Ragged strings, shape `(batch, None)`; an empty text has no words.
    """
    texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
    texts = tf_text.case_fold_utf8(texts)
    texts = tf.strings.regex_replace(texts, r"<[a-z/][^>]{0,40}>", " ")
    texts = tf.strings.regex_replace(texts, r"([!?])", r" \1 ")
    texts = tf.strings.regex_replace(texts, r"[^\p{L}\p{N}'!?]+", " ")
    return tf_text.WhitespaceTokenizer().tokenize(texts)


def build_vocabulary(texts: Iterable[bytes], size: int) -> tuple[str, ...]:
    """Returns the most frequent words of texts, the most frequent first.

    Args:
        texts: Texts to count words in: training texts only, or the test split leaks.
        size: Largest number of words.

    Returns:
        The words; equally frequent ones are in alphabetical order.
    """
    tally: Counter[bytes] = Counter()
    for batch in _in_batches(texts):
        tally.update(split_words(tf.constant(batch)).flat_values.numpy().tolist())
    ranked = sorted(tally.items(), key=lambda item: (-item[1], item[0]))
    return tuple(word.decode() for word, _ in ranked[:size])


class Tokenizer(tf.Module):
    """Maps texts to ids: word i of the vocabulary has id i + 2, 0 pads, 1 is an unknown word.

    Args:
        vocabulary: The known words.
        max_tokens: Number of words that are read of a text: the last ones, as reviews conclude at
            their end.

    Raises:
        ValueError: for an empty vocabulary.
    """

    def __init__(self, vocabulary: Sequence[str], max_tokens: int) -> None:
        super().__init__()
        if not vocabulary:
            raise ValueError("The texts hold no word, of letters, digits, ! or ?.")
        self.max_tokens = max_tokens
        ids = tf.range(2, len(vocabulary) + 2, dtype=tf.int32)
        self.table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(tf.constant(list(vocabulary)), ids), UNKNOWN
        )

    @property
    def card_limits(self) -> list[str]:
        """What a model card says of it."""
        return [f"Only the last {self.max_tokens} words of a text are read."]

    def ragged(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Returns the ids of each text, int32, shape `(batch, None)`."""
        words = split_words(texts)[:, -self.max_tokens :]
        return tf.ragged.map_flat_values(self.table.lookup, words)

    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        """Returns ids with zeros at the end, int32, shape `(batch, length)`, length at least 1."""
        ids = self.ragged(texts)
        width = tf.maximum(tf.reduce_max(tf.concat([ids.row_lengths(), [0]], 0)), 1)
        return ids.to_tensor(default_value=PADDING, shape=tf.stack([-1, width]))

    def encode(self, texts: Iterable[bytes]) -> list[np.ndarray]:
        """Returns the ids of many texts as NumPy vectors."""
        encoded = []
        for batch in _in_batches(texts):
            ids = self.ragged(tf.constant(batch))
            encoded += np.split(ids.flat_values.numpy(), ids.row_splits.numpy()[1:-1])
        return encoded


def _in_batches(texts, size=1000):
    texts = list(texts)
    for start in range(0, len(texts), size):
        yield texts[start : start + size]
