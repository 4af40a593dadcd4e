"""Word vectors from counting."""

import numpy as np
import pytest

from keras_ldam.experiments import word_vectors

# Ids: 2 good, 3 great, 4 bad, 5 awful, 6 film, 7 movie.
GOOD, GREAT, BAD, AWFUL, FILM, MOVIE = range(2, 8)


@pytest.fixture
def reviews(rng):
    texts, labels = [], []
    for label in (0, 1):
        for _ in range(60):
            praise = rng.choice([GOOD, GREAT] if label else [BAD, AWFUL], size=2)
            thing = rng.choice([FILM, MOVIE])
            texts.append([praise[0], thing, 1, praise[1], thing])
            labels.append(label)
    return np.concatenate(texts), np.full(len(texts), 5), np.array(labels)


def test_words_of_a_class_have_the_log_ratio_of_their_shares():
    values, lengths = np.array([2, 2, 3, 2, 4]), np.array([3, 1, 1])
    ratio = word_vectors.log_count_ratio(values, lengths, np.array([1, 0, 0]), 5)
    # Word 2 is in 1 of 1 reviews of class 1 and in 1 of 2 of class 0; each smoothed.
    np.testing.assert_allclose(ratio[2], np.log((2 / 3) / (2 / 4)), rtol=1e-6)
    np.testing.assert_allclose(ratio[4], np.log((1 / 3) / (2 / 4)), rtol=1e-6)
    assert ratio[:2].tolist() == [0, 0]


def test_words_with_the_same_neighbors_have_similar_vectors(reviews):
    values, lengths, _ = reviews
    vectors = word_vectors.cooccurrence_vectors(values, lengths, 8, size=3)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9)
    likeness = unit @ unit.T
    assert likeness[GOOD, GREAT] > likeness[GOOD, BAD]
    assert likeness[BAD, AWFUL] > likeness[BAD, GREAT]


def test_padding_and_unknown_words_have_no_vector(reviews):
    vectors = word_vectors.initial_embedding(*reviews, 9, size=4)
    assert vectors.shape == (9, 4)
    assert vectors.dtype == np.float32
    assert not vectors[:2].any()
    assert not vectors[8].any()  # A word that no review has.
    assert vectors[GOOD, -1] > 0 > vectors[BAD, -1]


def test_no_pair_of_neighbors_spans_two_reviews():
    vectors = word_vectors.cooccurrence_vectors(np.array([2, 3]), np.array([1, 1]), 4, size=2)
    assert not vectors.any()


def test_words_of_three_classes_have_a_ratio_for_each_or_the_directions_that_differ_most():
    values, lengths, labels = np.array([2, 3, 4, 2]), np.array([1, 1, 1, 1]), np.array([0, 1, 2, 0])
    ratios = word_vectors.class_ratios(values, lengths, labels, 6, largest=3)
    # Word 2 is in 2 of 2 reviews of class 0 and in 0 of 2 of the others; each smoothed.
    np.testing.assert_allclose(ratios[2, 0], np.log((3 / 4) / (1 / 4)), rtol=1e-6)
    assert (ratios[2:5].argmax(axis=1) == [0, 1, 2]).all() and not ratios[:2].any()
    fewer = word_vectors.class_ratios(values, lengths, labels, 6, largest=2)
    assert fewer.shape == (6, 2)
    # Three columns that nearly sum to zero lie in a plane.
    inner = ratios @ ratios.T
    assert np.linalg.norm(fewer @ fewer.T - inner) < 0.35 * np.linalg.norm(inner)
    vectors = word_vectors.initial_embedding(values, lengths, labels, 6, size=6)
    np.testing.assert_allclose(vectors[:, -3:], 0.5 * ratios, rtol=1e-6)
