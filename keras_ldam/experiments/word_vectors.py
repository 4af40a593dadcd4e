"""Word vectors from the training reviews alone, in seconds: a start for a small network.

Two kinds of knowledge, both from counting: which words keep the same company, and which words
favour a class. No outside text and no test review is read.
"""

from __future__ import annotations

import numpy as np

_FIRST_WORD = 2
"""Ids below it are padding and unknown words."""


def prepared(
    values: np.ndarray,
    lengths: np.ndarray,
    labels: np.ndarray,
    vocabulary_size: int,
    *,
    size: int,
    seed: int = 0,
) -> np.ndarray:
    """Vectors of `size` numbers for each word id: its company, and in the last one its class.

    Args:
        values: Word ids of all reviews, one review after the other, `[total]`.
        lengths: Words of each review, `[n]`.
        labels: Class of each review, 0 or 1, `[n]`.
        vocabulary_size: Number of word ids.
        size: Length of a vector, at least 2.
        seed: Seed of the randomised decomposition.

    Returns:
        float32 array `[vocabulary_size, size]`; the rows of padding and unknown words are zero.
    """
    company = company_vectors(values, lengths, vocabulary_size, size=size - 1, seed=seed)
    ratio = log_count_ratio(values, lengths, labels, vocabulary_size)
    # The scales at which a randomly started embedding would be after some training.
    return np.concatenate([0.3 * company, 0.5 * ratio[:, None]], axis=1)


def log_count_ratio(
    values: np.ndarray, lengths: np.ndarray, labels: np.ndarray, vocabulary_size: int
) -> np.ndarray:
    """log p(word | class 1) - log p(word | class 0), where p is the share of reviews with the word.

    Shares are smoothed by one review with and one without the word, so that they are never zero;
    how many reviews a class has cancels.

    Returns:
        float32 array `[vocabulary_size]`.

    References:
        Wang and Manning, 2012, "Baselines and Bigrams".
    """
    review = np.repeat(np.arange(len(lengths)), lengths)
    # Each word once a review.
    pairs = np.unique(review.astype(np.int64) * vocabulary_size + values)
    owner, word = np.divmod(pairs, vocabulary_size)
    ratio = np.zeros(vocabulary_size)
    for label, sign in ((1, 1.0), (0, -1.0)):
        count = np.bincount(word[labels[owner] == label], minlength=vocabulary_size)
        ratio += sign * np.log((count + 1.0) / (np.sum(labels == label) + 2.0))
    ratio[:_FIRST_WORD] = 0.0
    return ratio.astype(np.float32)


def company_vectors(
    values: np.ndarray,
    lengths: np.ndarray,
    vocabulary_size: int,
    *,
    size: int,
    window: int = 4,
    seed: int = 0,
) -> np.ndarray:
    """Positive pointwise mutual information of neighbouring words, reduced by a truncated SVD.

    Args:
        values: Word ids of all reviews, `[total]`.
        lengths: Words of each review, `[n]`.
        vocabulary_size: Number of word ids.
        size: Length of a vector.
        window: How many words to each side are neighbours; one at distance d counts 1/d.
        seed: Seed of the randomised decomposition.

    Returns:
        float32 array `[vocabulary_size, size]`, each row of root mean square 1, or zero for a word
        without neighbours.

    References:
        Levy et al., 2015, "Improving Distributional Similarity with Lessons Learned from Word
        Embeddings": counts of contexts to the power 3/4, and singular values to the power 1/2.
    """
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
