"""Word vectors from the training reviews alone, in seconds, to initialize a small network.

They come from two counts: which words occur near the same words, and which words favor a class.
Neither other texts nor test reviews are read.
"""

from __future__ import annotations

import numpy as np

from keras_ldam import extras

_FIRST_WORD = 2
"""Lower ids are padding and unknown words."""


def initial_embedding(
    values: np.ndarray,
    lengths: np.ndarray,
    labels: np.ndarray,
    vocabulary_size: int,
    *,
    size: int,
    seed: int = 0,
) -> np.ndarray:
    """Returns a vector for each word id: its cooccurrences and, in the last numbers, its classes.

    Args:
        values: Word ids of all reviews, one review after the other, shape `(total,)`.
        lengths: Words of each review, shape `(n,)`.
        labels: Class of each review, whole numbers from 0, shape `(n,)`.
        vocabulary_size: Number of word ids.
        size: Length of a vector, at least 2.
        seed: Seed of the randomized decomposition. Defaults to 0.

    Returns:
        float32 array, shape `(vocabulary_size, size)`; the rows of padding and unknown words are
        zero.
    """
    if labels.max(initial=1) < 2:
        ratios = log_count_ratio(values, lengths, labels, vocabulary_size)[:, None]
    else:
        ratios = class_ratios(
            values, lengths, labels, vocabulary_size, largest=max(1, size // 2), seed=seed
        )
    vectors = cooccurrence_vectors(
        values, lengths, vocabulary_size, size=size - ratios.shape[1], seed=seed
    )
    # The scales that a random embedding reaches after some training.
    return np.concatenate([0.3 * vectors, 0.5 * ratios], axis=1)


def class_ratios(
    values: np.ndarray,
    lengths: np.ndarray,
    labels: np.ndarray,
    vocabulary_size: int,
    *,
    largest: int,
    seed: int = 0,
) -> np.ndarray:
    """Returns `log_count_ratio` of each class against all others, one column a class.

    Args:
        values: Word ids of all reviews, one review after the other, shape `(total,)`.
        lengths: Words of each review, shape `(n,)`.
        labels: Class of each review, whole numbers from 0, shape `(n,)`.
        vocabulary_size: Number of word ids.
        largest: Largest number of columns; for more classes, the columns are projected on as many
            directions in which the words differ most.
        seed: Seed of the randomized decomposition. Defaults to 0.

    Returns:
        float32 array, shape `(vocabulary_size, min(num_classes, largest))`.
    """
    ratios = np.stack(
        [
            log_count_ratio(values, lengths, np.int32(labels == label), vocabulary_size)
            for label in range(int(labels.max()) + 1)
        ],
        axis=1,
    )
    if ratios.shape[1] <= largest:
        return ratios
    with extras.needed("experiments", by="an initial embedding"):
        from sklearn.utils.extmath import randomized_svd

    left, strength, _ = randomized_svd(ratios, largest, n_iter=2, random_state=seed)
    return (left * strength).astype(np.float32)


def log_count_ratio(
    values: np.ndarray, lengths: np.ndarray, labels: np.ndarray, vocabulary_size: int
) -> np.ndarray:
    """Returns log p(word | class 1) - log p(word | class 0), where p is a share of reviews.

    Shares are smoothed by one review with the word and one without it, so that none is zero. The
    number of reviews of a class cancels.

    Args:
        values: Word ids of all reviews, one review after the other, shape `(total,)`.
        lengths: Words of each review, shape `(n,)`.
        labels: Class of each review, 0 or 1, shape `(n,)`.
        vocabulary_size: Number of word ids.

    Returns:
        float32 array, shape `(vocabulary_size,)`.

    References:

    - Wang and Manning, 2012, "Baselines and Bigrams"
    """
    review = np.repeat(np.arange(len(lengths)), lengths)
    # Each word counts once in a review.
    pairs = np.unique(review.astype(np.int64) * vocabulary_size + values)
    owner, word = np.divmod(pairs, vocabulary_size)
    ratio = np.zeros(vocabulary_size)
    for label, sign in ((1, 1.0), (0, -1.0)):
        count = np.bincount(word[labels[owner] == label], minlength=vocabulary_size)
        ratio += sign * np.log((count + 1.0) / (np.sum(labels == label) + 2.0))
    ratio[:_FIRST_WORD] = 0.0
    return ratio.astype(np.float32)


def cooccurrence_vectors(
    values: np.ndarray,
    lengths: np.ndarray,
    vocabulary_size: int,
    *,
    size: int,
    window: int = 4,
    seed: int = 0,
) -> np.ndarray:
    """Returns a truncated SVD of the positive pointwise mutual information of neighboring words.

    Args:
        values: Word ids of all reviews, one review after the other, shape `(total,)`.
        lengths: Words of each review, shape `(n,)`.
        vocabulary_size: Number of word ids.
        size: Length of a vector.
        window: Number of words on each side that are neighbors; one at distance d counts 1/d.
            Defaults to 4.
        seed: Seed of the randomized decomposition. Defaults to 0.

    Returns:
        float32 array, shape `(vocabulary_size, size)`; each row has root mean square 1, or is zero
        for a word without neighbors.

    References:

    - Levy et al., 2015, "Improving Distributional Similarity with Lessons Learned from Word
      Embeddings": counts of contexts to the power 3/4, and singular values to the power 1/2
    """
    with extras.needed("experiments", by="an initial embedding"):
        import scipy.sparse
        from sklearn.utils.extmath import randomized_svd

    shape = (vocabulary_size, vocabulary_size)
    review = np.repeat(np.arange(len(lengths)), lengths)
    near = scipy.sparse.csr_matrix(shape, dtype=np.float32)
    for distance in range(1, window + 1):
        left, right = values[:-distance], values[distance:]
        known = (left >= _FIRST_WORD) & (right >= _FIRST_WORD)
        kept = known & (review[:-distance] == review[distance:])
        share = np.full(kept.sum(), 1.0 / distance, dtype=np.float32)
        near += scipy.sparse.csr_matrix((share, (left[kept], right[kept])), shape=shape)
    near = (near + near.T).tocoo()
    word = np.bincount(near.row, near.data, minlength=vocabulary_size)
    context = word**0.75
    context *= near.data.sum() / max(context.sum(), 1e-12)
    information = np.log(near.data * near.data.sum() / (word[near.row] * context[near.col])).astype(
        np.float32
    )
    positive = information > 0
    matrix = scipy.sparse.csr_matrix(
        (information[positive], (near.row[positive], near.col[positive])), shape=shape
    )
    left, strength, _ = randomized_svd(matrix, size, n_iter=2, random_state=seed)
    vectors = left * np.sqrt(strength)
    size_of = np.sqrt(np.mean(vectors**2, axis=1, keepdims=True))
    return np.where(size_of > 1e-6, vectors / np.maximum(size_of, 1e-6), 0).astype(np.float32)
