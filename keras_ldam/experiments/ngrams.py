"""N-grams of the training texts, and how much each favors a class."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_FIRST_WORD = 2
"""Lower ids are padding and unknown words."""
LARGEST = 2**31 - 1
"""Largest key of an n-gram: the whole numbers of every backend."""


class NGrams(NamedTuple):
    """Words, bigrams and trigrams, numbered in this order: word ids, then bigrams, then trigrams.

    Args:
        bigrams: Keys, increasing, int32, shape `(num_bigrams,)`: that of words v, w is
            `v * vocabulary_size + w`.
        trigrams: Likewise; that of a bigram of number b among the bigrams, followed by w, is
            `b * vocabulary_size + w`.
        weights: Weight of each, float32, shape `(vocabulary_size + num_bigrams + num_trigrams,)`;
            0 for padding and unknown words.
    """

    bigrams: np.ndarray
    trigrams: np.ndarray
    weights: np.ndarray


def count(
    values: np.ndarray,
    lengths: np.ndarray,
    labels: np.ndarray,
    vocabulary_size: int,
    *,
    fewest: int = 10,
    most: int = 100_000,
    smoothing: float = 10.0,
) -> NGrams:
    """Counts n-grams, and weights each by its log-count ratio.

    For two classes the weight is r = log p_1 - log p_0 with p_j = c_j / n_j + α / n, where c_j of
    the n_j texts of class j have the n-gram. So one that no text has weighs nothing, and one that
    few texts have weighs little. For more classes the weight is the largest |r| of a class against
    all others.

    Args:
        values: Word ids of all texts, one text after the other, shape `(total,)`.
        lengths: Words of each text, shape `(n,)`.
        labels: Class of each text, whole numbers from 0, shape `(n,)`.
        vocabulary_size: Number of word ids, at most 46,340, so that keys are below 2³¹.
        fewest: Texts that a bigram or trigram must be in to be known. Defaults to 10.
        most: Largest number of bigrams, and of trigrams; those in most texts. Fewer if their keys
            would reach 2³¹. Defaults to 100,000.
        smoothing: α, above 0. Defaults to 10.

    Raises:
        ValueError: if the vocabulary is too large.

    References:

    - Wang and Manning, 2012, "Baselines and Bigrams"
    """
    if vocabulary_size**2 > LARGEST:
        raise ValueError(
            "the vocabulary must have at most 46338 words for n-grams; choose a smaller "
            f"vocabulary_size. Received: {vocabulary_size - _FIRST_WORD} words"
        )
    most = min(most, LARGEST // vocabulary_size)
    text = np.repeat(np.arange(len(lengths)), lengths)
    known = values >= _FIRST_WORD
    ratio = _Ratio(labels, smoothing)
    words = ratio(text[known], values[known], vocabulary_size)
    words[:_FIRST_WORD] = 0.0

    pairs = np.flatnonzero(known[:-1] & known[1:] & (text[:-1] == text[1:]))
    keys = values[pairs].astype(np.int64) * vocabulary_size + values[pairs + 1]
    bigrams, numbers = _frequent(text[pairs], keys, fewest, most)
    pairs, numbers = pairs[numbers >= 0], numbers[numbers >= 0]
    of_bigrams = ratio(text[pairs], numbers, len(bigrams))

    inside = pairs + 2 < len(values)
    pairs, numbers = pairs[inside], numbers[inside]
    longer = known[pairs + 2] & (text[pairs] == text[pairs + 2])
    pairs, numbers = pairs[longer], numbers[longer]
    keys = numbers * vocabulary_size + values[pairs + 2]
    trigrams, numbers = _frequent(text[pairs], keys, fewest, most)
    of_trigrams = ratio(text[pairs[numbers >= 0]], numbers[numbers >= 0], len(trigrams))
    return NGrams(
        bigrams.astype(np.int32),
        trigrams.astype(np.int32),
        np.concatenate([words, of_bigrams, of_trigrams]).astype(np.float32),
    )


def _frequent(text, keys, fewest, most):
    """The keys in enough texts, increasing, and the number of each given one; -1 if unknown."""
    if not len(keys):
        return keys, keys
    distinct, numbers = np.unique(keys, return_inverse=True)
    once = np.unique(text * len(distinct) + numbers) % len(distinct)
    texts = np.bincount(once, minlength=len(distinct))
    kept = np.argsort(-texts, kind="stable")[:most]
    kept = np.sort(kept[texts[kept] >= fewest])
    renumbered = np.full(len(distinct), -1)
    renumbered[kept] = np.arange(len(kept))
    return distinct[kept], renumbered[numbers]


class _Ratio:
    """Log-count ratios of what texts hold; each counts once in a text."""

    def __init__(self, labels, smoothing):
        self.labels, self.smoothing = labels, smoothing
        self.classes = int(labels.max(initial=1)) + 1

    def __call__(self, text, numbers, size):
        text, numbers = np.divmod(np.unique(text * size + numbers), max(1, size))
        of = self.labels[text]
        counts = np.stack(
            [np.bincount(numbers[of == k], minlength=size) for k in range(self.classes)]
        )
        if self.classes == 2:
            return self._ratio(counts[1], counts[0], np.sum(self.labels == 1))
        ratios = [
            self._ratio(own, counts.sum(axis=0) - own, np.sum(self.labels == k))
            for k, own in enumerate(counts)
        ]
        return np.max(np.abs(ratios), axis=0)

    def _ratio(self, own, others, texts):
        n = len(self.labels)
        if texts in (0, n):  # A class without a text, as in a part of the data, favors nothing.
            return np.zeros(len(own))
        rate = self.smoothing / n
        return np.log((own / texts + rate) / (others / (n - texts) + rate))
