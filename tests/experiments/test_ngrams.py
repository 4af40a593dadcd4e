"""N-grams: their counting, and the bag of them within the network."""

import keras
import numpy as np
import pytest

from keras_ldam import CosineDense
from keras_ldam.experiments import ngrams
from keras_ldam.experiments.models.bilstm import bilstm
from keras_ldam.experiments.models.ngram_bag import KnownNGrams, WeightedBag

TEXTS = [[2, 3, 4], [2, 3, 4, 2, 3], [3, 2, 1, 3], [4]]
LABELS = np.array([1, 0, 1, 1])


def counted(texts=TEXTS, labels=LABELS, size=6, **changes):
    values, lengths = np.concatenate(texts), np.array([len(text) for text in texts])
    return ngrams.count(values, lengths, labels, size, **{"fewest": 1, "smoothing": 2, **changes})


def as_batch(texts, width):
    return np.array([text + [0] * (width - len(text)) for text in texts], "int32")


def as_words(known, size=6):
    """Every known n-gram, as a tuple of word ids."""
    pairs = [divmod(int(key), size) for key in known.bigrams]
    triples = [(*pairs[key // size], int(key % size)) for key in known.trigrams]
    return [(word,) for word in range(size)] + pairs + triples


def test_a_weight_is_the_log_ratio_of_the_smoothed_shares_of_the_classes():
    known = counted()
    weight = dict(zip(as_words(known), known.weights.tolist(), strict=True))
    # Of 1 text of class 0 and 3 of class 1; the smoothing is 2 / 4.
    assert weight[(2,)] == pytest.approx(np.log((2 / 3 + 0.5) / (1 + 0.5)), rel=1e-6)
    assert weight[2, 3] == pytest.approx(np.log((1 / 3 + 0.5) / (1 + 0.5)), rel=1e-6)
    assert weight[4, 2] == weight[4, 2, 3] == pytest.approx(np.log(0.5 / (1 + 0.5)), rel=1e-6)
    assert weight[3, 2] == pytest.approx(np.log((1 / 3 + 0.5) / 0.5), rel=1e-6)
    assert known.weights[:2].tolist() == [0, 0] and weight[(5,)] == 0  # In no text.


def test_a_text_more_of_the_frequent_class_weighs_less_than_one_of_the_rare_class():
    texts = [[2, 3], [3, 2]] + [[4, 5]] * 18
    known = counted(texts, np.array([0, 1] + [0, 1, 1, 1, 1, 1] * 3), smoothing=10)
    weight = dict(zip(as_words(known), known.weights.tolist(), strict=True))
    assert weight[2, 3] == pytest.approx(-np.log((1 / 4 + 0.5) / 0.5), rel=1e-6)
    assert weight[3, 2] == pytest.approx(np.log((1 / 16 + 0.5) / 0.5), rel=1e-6)


def test_ngrams_do_not_span_texts_or_unknown_words_and_are_in_enough_texts():
    assert as_words(counted())[6:] == [
        (2, 3),
        (3, 2),
        (3, 4),
        (4, 2),
        (2, 3, 4),
        (3, 4, 2),
        (4, 2, 3),
    ]
    twice = counted(fewest=2)
    assert as_words(twice)[6:] == [(2, 3), (3, 4), (2, 3, 4)]
    assert as_words(counted(most=1))[6:] == [(2, 3), (2, 3, 4)]
    assert len(counted([[2], [3]], np.array([0, 1])).bigrams) == 0


def test_of_several_classes_the_clearest_counts():
    known = counted([[2, 3], [3], [4]], np.array([0, 1, 2]), smoothing=1)
    # Word 2 is in 1 of 1 of class 0 and in 0 of 2 others; word 3 in 0 of 1 of class 2 and 2 of 2.
    clearest = np.log((1 + 1 / 3) / (1 / 3))
    np.testing.assert_allclose(known.weights[2:4], clearest, rtol=1e-6)


def test_a_vocabulary_whose_keys_no_backend_can_hold_is_refused():
    with pytest.raises(ValueError, match=r"at most 46338 words for n-grams.*Received: 46339 words"):
        counted(size=46_341)


@pytest.mark.parametrize("width", [1, 5])
def test_the_layer_finds_what_a_walk_over_the_text_finds_each_once(width):
    known = counted()
    names = as_words(known)
    layer = KnownNGrams(6, len(known.bigrams), len(known.trigrams))
    texts = [[2, 3, 4, 2, 3], [4, 2, 3], [1, 5, 2], [], [3]]
    texts = [text[:width] for text in texts]
    layer.build((None, None))
    layer.assign(known)
    numbers, weights = map(np.array, layer(as_batch(texts, width)))
    for text, row, weighed in zip(texts, numbers, weights, strict=True):
        walked = {
            tuple(text[i : i + n])
            for n in (1, 2, 3)
            for i in range(len(text) - n + 1)
            if tuple(text[i : i + n]) in names and min(text[i : i + n]) >= 2
        }
        found = row[row > 0].tolist()
        assert len(found) == len(set(found))
        assert {names[number] for number in found} == walked
        np.testing.assert_array_equal(weighed, known.weights[row])


def test_the_bag_is_a_layer_on_the_weighted_vectors():
    bag = WeightedBag(4, 3)
    numbers, weights = np.array([[1, 3, 0], [2, 0, 0]]), np.array([[2.0, -1, 0], [0.5, 0, 0]])
    found = np.array(bag(numbers, weights.astype("float32")))
    table, bias = (np.array(each) for each in bag.get_weights())
    expected = np.stack([2 * table[1] - table[3], 0.5 * table[2]])
    np.testing.assert_allclose(found, np.maximum(expected + bias, 0), rtol=1e-5, atol=1e-7)


def test_a_network_with_ngrams_is_saved_with_them_and_ignores_padding(tmp_path):
    model = bilstm(
        head=CosineDense(2),
        vocabulary_size=6,
        embedding_size=3,
        units=2,
        known_ngrams=counted(),
        ngram_units=4,
        projection=3,
    )

    def answers(network, width):
        return np.array(network(as_batch(TEXTS, width)))

    short = answers(model, 5)
    np.testing.assert_allclose(answers(model, 8), short, atol=1e-6)
    assert model.get_layer("features").moving_mean.shape == (4 * 2 + 3 + 4,)
    bag = model.get_layer("bag")
    bag.vectors.assign(5 + bag.vectors)
    changed = answers(model, 5)
    assert np.abs(changed - short).max() > 1e-3
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(answers(again, 5), changed, atol=1e-6)
