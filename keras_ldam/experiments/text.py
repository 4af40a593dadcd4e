"""From reviews to word ids, in TensorFlow's graph, so that it can be exported with the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

PADDING, UNKNOWN = 0, 1
"""Ids that no word has."""


def split_words(texts: tf.Tensor) -> tf.RaggedTensor:
    """Splits texts into lower-case words, numbers, and `!` and `?`; markup is dropped.

    Args:
        texts: Strings, shape `[batch]`. Bytes that are not UTF-8 count as a gap between words.

    Returns:
        Ragged strings, `[batch, (words)]`; an empty text has no words.
    """
    texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
    texts = tf_text.case_fold_utf8(texts)
    texts = tf.strings.regex_replace(texts, r"<[a-z/][^>]{0,40}>", " ")
    texts = tf.strings.regex_replace(texts, r"([!?])", r" \1 ")
    texts = tf.strings.regex_replace(texts, r"[^\p{L}\p{N}'!?]+", " ")
    return tf_text.WhitespaceTokenizer().tokenize(texts)


def build_vocabulary(texts: Iterable[bytes], size: int) -> tuple[str, ...]:
    """The most frequent words of `texts`, the most frequent first.

    Args:
        texts: Reviews to count words in: the training ones alone, or the test leaks.
        size: How many words at most.

    Returns:
        The words; of equally frequent ones the alphabetically first come first.
    """
    tally: Counter[bytes] = Counter()
    for batch in _in_batches(texts):
        tally.update(split_words(tf.constant(batch)).flat_values.numpy().tolist())
    ranked = sorted(tally.items(), key=lambda item: (-item[1], item[0]))
    return tuple(word.decode() for word, _ in ranked[:size])


class Tokenizer(tf.Module):
    """Texts to ids: word i of the vocabulary has id i + 2, 0 pads, 1 stands for unknown words.

    Args:
        vocabulary: The known words.
        max_tokens: How many words of a text are read: the last ones, where a review concludes.
    """

    def __init__(self, vocabulary: Sequence[str], max_tokens: int):
        super().__init__()
        self.max_tokens = max_tokens
        ids = tf.range(2, len(vocabulary) + 2, dtype=tf.int32)
        self.table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(tf.constant(list(vocabulary)), ids), UNKNOWN
        )

    def ragged(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Ids of each text, int32 `[batch, (words)]`."""
        words = split_words(texts)[:, -self.max_tokens :]
        return tf.ragged.map_flat_values(self.table.lookup, words)

    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        """Ids with zeros at the end, int32 `[batch, longest]`; at least one column."""
        ids = self.ragged(texts)
        width = tf.maximum(tf.reduce_max(tf.concat([ids.row_lengths(), [0]], 0)), 1)
        return ids.to_tensor(default_value=PADDING, shape=tf.stack([-1, width]))

    def encode(self, texts: Iterable[bytes]) -> list[np.ndarray]:
        """Ids of many texts as NumPy vectors."""
        encoded = []
        for batch in _in_batches(texts):
            ids = self.ragged(tf.constant(batch))
            encoded += np.split(ids.flat_values.numpy(), ids.row_splits.numpy()[1:-1])
        return encoded


def _in_batches(texts, size=1000):
    texts = list(texts)
    for start in range(0, len(texts), size):
        yield texts[start : start + size]
