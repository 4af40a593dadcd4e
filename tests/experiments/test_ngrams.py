"""N-grams: their counting, and what they say within the network."""

import keras
import numpy as np
import pytest

from keras_ldam import CosineDense
from keras_ldam.experiments import ngrams
from keras_ldam.experiments.models.bilstm import bilstm
from keras_ldam.experiments.models.ngram_evidence import NGramEvidence

TEXTS = [[2, 3, 4], [2, 3, 4, 2, 3], [3, 2, 1, 3], [4]]
LABELS = np.array([1, 0, 1, 1])


def counted(texts=TEXTS, labels=LABELS, size=6, **changes):
    values, lengths = np.concatenate(texts), np.array([len(text) for text in texts])
    return ngrams.count(values, lengths, labels, size, **{"fewest": 1, "smoothing": 2, **changes})


def weights_of(known, row=-1):
    return known.weights[row, :, 0].tolist()


def as_batch(texts, width):
    return np.array([text + [0] * (width - len(text)) for text in texts], "int32")


def as_words(known, size=6):
    """Every known n-gram, as a tuple of word ids."""
    pairs = [divmod(int(key), size) for key in known.bigrams]
    triples = [(*pairs[key // size], int(key % size)) for key in known.trigrams]
    return [(word,) for word in range(size)] + pairs + triples


def test_a_weight_is_the_log_ratio_of_the_smoothed_shares_of_the_classes():
    known = counted()
    weight = dict(zip(as_words(known), weights_of(known), strict=True))
    # Of 1 text of class 0 and 3 of class 1; the smoothing is 2 / 4.
    assert weight[(2,)] == pytest.approx(np.log((2 / 3 + 0.5) / (1 + 0.5)), rel=1e-6)
    assert weight[2, 3] == pytest.approx(np.log((1 / 3 + 0.5) / (1 + 0.5)), rel=1e-6)
    assert weight[4, 2] == weight[4, 2, 3] == pytest.approx(np.log(0.5 / (1 + 0.5)), rel=1e-6)
    assert weight[3, 2] == pytest.approx(np.log((1 / 3 + 0.5) / 0.5), rel=1e-6)
    assert weights_of(known)[:2] == [0, 0] and weight[(5,)] == 0  # In no text.


def test_a_text_more_of_the_frequent_class_weighs_less_than_one_of_the_rare_class():
    texts = [[2, 3], [3, 2]] + [[4, 5]] * 18
    known = counted(texts, np.array([0, 1] + [0, 1, 1, 1, 1, 1] * 3), smoothing=10)
    weight = dict(zip(as_words(known), weights_of(known), strict=True))
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


def test_of_several_classes_each_has_its_ratio_to_all_others():
    known = counted([[2, 3], [3], [4]], np.array([0, 1, 2]), smoothing=1)
    assert known.weights.shape == (ngrams.FOLDS + 1, len(as_words(known)), 3)
    # Word 2 is in 1 of 1 of class 0 and in 0 of 2 others; word 3 in 0 of 1 of class 2 and 2 of 2.
    clear = np.log((1 + 1 / 3) / (1 / 3))
    assert known.weights[-1, 2, 0] == pytest.approx(clear, rel=1e-6)
    assert known.weights[-1, 3, 2] == pytest.approx(-clear, rel=1e-6)


def test_each_row_but_the_last_is_counted_without_its_fold():
    generator = np.random.default_rng(0)
    texts = [generator.integers(1, 6, generator.integers(1, 9)).tolist() for _ in range(40)]
    labels = generator.integers(0, 3, 40)
    known = counted(texts, labels, fewest=3)
    folds = np.array([sum(text) % ngrams.FOLDS for text in texts])
    for fold in range(ngrams.FOLDS):
        kept = [text for text, own in zip(texts, folds, strict=True) if own != fold]
        alone = counted(kept, labels[folds != fold])
        expected = dict(zip(as_words(alone), alone.weights[-1].tolist(), strict=True))
        for words, found in zip(as_words(known), known.weights[fold].tolist(), strict=True):
            # An n-gram that no other text has weighs what a count of zero gives.
            if words in expected:
                np.testing.assert_allclose(found, expected[words], rtol=1e-5)


def test_more_classes_than_there_is_memory_for_are_refused():
    with pytest.raises(ValueError, match="at most 50 classes; choose network bilstm"):
        counted([[2]] * 51, np.arange(51))


def test_a_vocabulary_whose_keys_no_backend_can_hold_is_refused():
    with pytest.raises(ValueError, match=r"at most 46338 words for n-grams.*Received: 46339 words"):
        counted(size=46_341)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("width", [1, 5])
def test_the_layer_sums_what_a_walk_over_the_text_finds_each_once(width, training):
    labels = np.array([1, 0, 2, 1])
    known = counted(labels=labels)
    names = as_words(known)
    layer = NGramEvidence(6, len(known.bigrams), len(known.trigrams), columns=3)
    texts = [[2, 3, 4, 2, 3], [4, 2, 3], [1, 5, 2], [], [3]]
    texts = [text[:width] for text in texts]
    layer.build((None, None))
    layer.assign(known)
    found = np.array(layer(as_batch(texts, width), training=training))
    for text, sums in zip(texts, found, strict=True):
        walked = {
            tuple(text[i : i + n])
            for n in (1, 2, 3)
            for i in range(len(text) - n + 1)
            if tuple(text[i : i + n]) in names and min(text[i : i + n]) >= 2
        }
        row = sum(text) % ngrams.FOLDS if training else -1
        expected = np.zeros((3, 2, 3))
        for words in walked:
            weight = known.weights[row, names.index(words)]
            expected[len(words) - 1, 0] += np.maximum(weight, 0)
            expected[len(words) - 1, 1] += np.minimum(weight, 0)
        expected /= np.sqrt(max(1, len(walked)))
        np.testing.assert_allclose(sums, expected.reshape(-1), rtol=1e-5, atol=1e-6)


def test_what_is_learned_in_training_is_right_for_new_texts():
    """Random labels: the weights of a text's own fold say nothing of it, all weights know it."""
    generator = np.random.default_rng(0)
    texts = [generator.integers(2, 60, 12).tolist() for _ in range(300)]
    labels = generator.integers(0, 2, 300)
    known = counted(texts, labels, size=60, smoothing=1)
    layer = NGramEvidence(60, len(known.bigrams), len(known.trigrams))
    layer.build((None, None))
    layer.assign(known)
    score = {
        training: np.array(layer(as_batch(texts, 12), training=training)).sum(axis=1)
        for training in (False, True)
    }
    differs = {
        training: found[labels == 1].mean() - found[labels == 0].mean()
        for training, found in score.items()
    }
    assert differs[False] > 1
    assert abs(differs[True]) < 0.2 * differs[False]


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
    evidence = model.get_layer("ngrams").evidence
    evidence.assign(-evidence)
    changed = answers(model, 5)
    assert np.abs(changed - short).max() > 1e-3
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(answers(again, 5), changed, atol=1e-6)
