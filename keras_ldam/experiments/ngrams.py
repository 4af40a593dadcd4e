"""N-grams of the training texts, and how much each favors a class.

A text's own label is part of the weights of its n-grams. A network that trained on them would learn
to believe them more than it may for new texts, so each training text is read with weights that were
counted without the fold of texts it belongs to.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_FIRST_WORD = 2
"""Lower ids are padding and unknown words."""
LARGEST = 2**31 - 1
"""Largest key of an n-gram: the whole numbers of every backend."""
FOLDS = 5
"""Parts of the training texts, each read with weights that were counted without it."""
MOST_CLASSES = 50


class NGrams(NamedTuple):
    """Words, bigrams and trigrams, numbered in this order: word ids, then bigrams, then trigrams.

    Args:
        bigrams: Keys, increasing, int32, shape `(num_bigrams,)`: that of words v, w is
            `v * vocabulary_size + w`.
        trigrams: Likewise; that of a bigram of number b among the bigrams, followed by w, is
            `b * vocabulary_size + w`.
        weights: Weight of each for each class, float32, shape `(FOLDS + 1, vocabulary_size +
            num_bigrams + num_trigrams, classes)`, with one column for two classes: row f was
            counted without fold f, the last row on all texts. Zeros for padding and unknown words.
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
    """Counts n-grams, and weights each by its log-count ratios.

    The weight of an n-gram for class j is log p_j - log q_j with p_j = c_j / n_j + α / n, where c_j
    of the n_j texts of class j have it, and q_j likewise for all other classes. So one that no text
    has weighs nothing, and one that few texts have weighs little. Of two classes the second one's
    weight is enough. The fold of a text is the sum of its word ids modulo `FOLDS`.

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
        ValueError: if the vocabulary is too large, or there are more than 50 classes.

    References:

    - Wang and Manning, 2012, "Baselines and Bigrams"
    """
    num_classes = int(labels.max(initial=1)) + 1
    if num_classes > MOST_CLASSES:
        raise ValueError(
            f"n-grams need at most {MOST_CLASSES} classes; choose network bilstm. "
            f"Received: {num_classes} classes"
        )
    if vocabulary_size**2 > LARGEST:
        raise ValueError(
            "the vocabulary must have at most 46338 words for n-grams; choose a smaller "
            f"vocabulary_size. Received: {vocabulary_size - _FIRST_WORD} words"
        )
    most = min(most, LARGEST // vocabulary_size)
    text = np.repeat(np.arange(len(lengths)), lengths)
    known = values >= _FIRST_WORD
    folds = np.bincount(text, values % FOLDS, minlength=len(lengths)).astype(np.int64) % FOLDS
    ratios = _Ratios(labels, folds, num_classes, smoothing)
    words = ratios(text[known], values[known], vocabulary_size)
    words[:, :_FIRST_WORD] = 0.0

    pairs = np.flatnonzero(known[:-1] & known[1:] & (text[:-1] == text[1:]))
    keys = values[pairs].astype(np.int64) * vocabulary_size + values[pairs + 1]
    bigrams, numbers = _frequent(text[pairs], keys, fewest, most)
    pairs, numbers = pairs[numbers >= 0], numbers[numbers >= 0]
    of_bigrams = ratios(text[pairs], numbers, len(bigrams))

    inside = pairs + 2 < len(values)
    pairs, numbers = pairs[inside], numbers[inside]
    longer = known[pairs + 2] & (text[pairs] == text[pairs + 2])
    pairs, numbers = pairs[longer], numbers[longer]
    keys = numbers * vocabulary_size + values[pairs + 2]
    trigrams, numbers = _frequent(text[pairs], keys, fewest, most)
    of_trigrams = ratios(text[pairs[numbers >= 0]], numbers[numbers >= 0], len(trigrams))
    return NGrams(
        bigrams.astype(np.int32),
        trigrams.astype(np.int32),
        np.concatenate([words, of_bigrams, of_trigrams], axis=1),
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


class _Ratios:
    """Log-count ratios of what texts hold, without each fold; each counts once in a text."""

    def __init__(self, labels, folds, num_classes, smoothing):
        self.labels, self.folds, self.classes = labels, folds, num_classes
        self.smoothing = smoothing
        every = np.arange(len(labels))
        self.texts = self._without(np.zeros_like(every), every, 1)

    def __call__(self, text, numbers, size):
        text, numbers = np.divmod(np.unique(text * size + numbers), max(1, size))
        counts = self._without(numbers, text, size)
        texts, n = self.texts, self.texts.sum(axis=1, keepdims=True)
        rate = self.smoothing / np.maximum(n, 1)
        own = counts / np.maximum(texts, 1) + rate
        others = (counts.sum(axis=1, keepdims=True) - counts) / np.maximum(n - texts, 1) + rate
        # A class without a text, or with all of them, as in a part of the data, favors nothing.
        ratios = np.where((texts > 0) & (texts < n), np.log(own / others), 0.0)
        ratios = ratios[:, 1:] if self.classes == 2 else ratios
        return np.moveaxis(ratios, 1, 2).astype(np.float32)

    def _without(self, numbers, text, size):
        """Texts of each class with each number, in all but one fold, and at last in all."""
        shape = FOLDS, self.classes, size
        places = np.ravel_multi_index((self.folds[text], self.labels[text], numbers), shape)
        counts = np.bincount(places, minlength=FOLDS * self.classes * size).reshape(shape)
        whole = counts.sum(axis=0, keepdims=True)
        return np.concatenate([whole - counts, whole])
