"""Means over classes against scikit-learn and imbalanced-learn. Runs on every backend."""

import keras
import numpy as np
import pytest

import keras_ldam

METRICS = [keras_ldam.BalancedAccuracy, keras_ldam.MacroF1, keras_ldam.GMean]


def oracle(metric, y, guesses, weights=None):
    sklearn = pytest.importorskip("sklearn.metrics")
    given = {"sample_weight": weights}
    if metric is keras_ldam.MacroF1:
        return sklearn.f1_score(y, guesses, average="macro", **given)
    if metric is keras_ldam.BalancedAccuracy:
        return sklearn.balanced_accuracy_score(y, guesses, **given)
    recalls = sklearn.recall_score(y, guesses, average=None, **given)
    return np.prod(recalls) ** (1 / len(recalls))


@pytest.mark.parametrize("make", METRICS)
def test_they_agree_with_scikit_learn_over_batches_of_weighted_labels_of_both_forms(make, rng):
    y, z = rng.integers(0, 4, 150), rng.normal(size=(150, 4)).astype("float32")
    weights = rng.random(150).astype("float32")
    metric = make(4)
    for i in range(0, 150, 64):
        at = slice(i, i + 64)
        labels = y[at] if i else np.eye(4, dtype="float32")[y[at]]
        metric.update_state(labels, z[at], weights[at])
    expected = oracle(make, y, z.argmax(axis=1), weights)
    assert float(metric.result()) == pytest.approx(expected, rel=1e-5)


def test_the_geometric_mean_is_that_of_imbalanced_learn(rng):
    imblearn = pytest.importorskip("imblearn.metrics", reason="imbalanced-learn is not installed")
    y, z = rng.integers(0, 4, 150), rng.normal(size=(150, 4)).astype("float32")
    metric = keras_ldam.GMean(4)
    metric.update_state(y, z)
    expected = imblearn.geometric_mean_score(y, z.argmax(axis=1))
    assert float(metric.result()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("make", METRICS)
def test_one_score_for_two_classes_counts_as_two_do(make, rng):
    y, z = rng.integers(0, 2, 40), rng.normal(size=(40, 1)).astype("float32")
    one, two = make(2), make(2)
    one.update_state(y, z)
    two.update_state(y, np.concatenate([0 * z, z], axis=1))
    assert float(one.result()) == float(two.result())
    probability = make(2, threshold=0.5)
    probability.update_state(y, 1 / (1 + np.exp(-z)))
    assert float(probability.result()) == float(two.result())
    again = type(probability).from_config(probability.get_config())
    assert again.threshold == 0.5


def test_hand_numbers():
    y, z = [0, 0, 0, 0, 1, 1], np.eye(2)[[0, 0, 0, 1, 1, 0]]
    found = []
    for make in METRICS:
        metric = make(2)
        metric.update_state(y, z)
        found.append(float(metric.result()))
    f1 = (2 * 3 / (4 + 4) + 2 * 1 / (2 + 2)) / 2
    assert found == pytest.approx([(3 / 4 + 1 / 2) / 2, f1, (3 / 4 * 1 / 2) ** 0.5])


@pytest.mark.parametrize("make", METRICS)
def test_what_has_no_label_counts_nothing_and_nan_is_wrong(make):
    metric = make(3)
    assert np.isnan(float(metric.result()))
    rows = np.array([[1, 0, 0], [0, 0, 0], [0, 1, 0]], "float32")
    metric.update_state(rows, np.eye(3)[[0, 2, 1]])
    assert float(metric.result()) == 1  # The third class has neither label nor guess that counts.
    metric.update_state([0], [[np.nan] * 3])  # argmax of it is class 0.
    expected = {
        keras_ldam.BalancedAccuracy: 0.75,
        keras_ldam.MacroF1: (2 / 3 + 1) / 2,
        keras_ldam.GMean: 0.5**0.5,
    }
    assert float(metric.result()) == pytest.approx(expected[make])


def test_a_class_that_is_never_right_makes_the_geometric_mean_zero():
    metric = keras_ldam.GMean(3)
    metric.update_state([0, 1, 2], np.eye(3)[[0, 1, 1]])
    assert float(metric.result()) == 0


def test_they_count_beyond_what_float32_can():
    metric = keras_ldam.BalancedAccuracy(2)
    metric.update_state([0], [[1.0, 0.0]], [np.float32(2**24)])
    for _ in range(4):
        metric.update_state([0], [[0.0, 1.0]])
    total, right = (float(s.value()[0]) for s in (metric._total, metric._right))
    assert (total, right) == (2**24 + 4, 2**24)


def test_they_go_through_fit_with_masks_and_weights_and_are_saved_with_the_model(rng, tmp_path):
    x, y = rng.normal(size=(24, 3, 2)).astype("float32"), rng.integers(0, 3, (24, 3))
    masked = slice(8 if keras.backend.backend() == "tensorflow" else 0)
    x[masked, 2] = 0  # Compiled steps on JAX lose the mask to every metric.
    model = keras.Sequential([keras.Input((3, 2)), keras.layers.Masking(), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, weighted_metrics=[make(3) for make in METRICS])
    weights = rng.random((24, 3)).astype("float32")
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    found = again.evaluate(x, y, sample_weight=weights, verbose=0, batch_size=10, return_dict=True)
    weights[masked, 2] = 0
    guesses = model.predict(x, verbose=0).argmax(axis=-1)
    for make, name in zip(METRICS, ("balanced_accuracy", "macro_f1", "g_mean"), strict=True):
        expected = oracle(make, y.ravel(), guesses.ravel(), weights.ravel())
        assert found[name] == pytest.approx(expected, rel=1e-4)


def test_bad_arguments_get_a_sentence():
    with pytest.raises(ValueError, match=r"`num_classes` must be a whole number of at least 2"):
        keras_ldam.MacroF1(1)
    with pytest.raises(ValueError, match=r"must have 3 classes .* by `num_classes`"):
        keras_ldam.MacroF1(3).update_state([0], [[1.0, 0.0]])
