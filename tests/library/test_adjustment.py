"""Reliability against scikit-learn's bins; temperatures, and shifts to another prior, by hand."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

import keras_ldam
from keras_ldam import adjustment


class Keyed:
    """What a pandas Series looks like from outside: sorted by its values, say."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def items(self):
        return iter(self.values.items())


def pandas_series(values):
    try:
        import pandas
    except ImportError:
        return pytest.param(None, marks=pytest.mark.skip("needs pandas"))
    return pandas.Series(values)


def test_bins_hold_their_right_end_and_their_means_are_those_of_hand():
    found = adjustment.reliability(
        np.array([0.5, 0.4, 0.6, 1.0, 0.0]), np.array([True, False, True, True, False]), bins=2
    )
    assert found["count"].tolist() == [3, 2]
    np.testing.assert_allclose(found["confidence"], [0.3, 0.8])
    np.testing.assert_allclose(found["accuracy"], [1 / 3, 1.0])
    np.testing.assert_allclose(found["ece"], (abs(0.9 - 1) + abs(1.6 - 2)) / 5)


def test_bins_are_those_of_scikit_learn_and_empty_ones_are_not_numbers(rng):
    confidences = rng.uniform(0.3, 1.0, 400)
    right = rng.uniform(size=400) < confidences**2
    found = adjustment.reliability(confidences, right, bins=10)
    accuracy, confidence = calibration_curve(right, confidences, n_bins=10)
    filled = found["count"] > 0
    assert not filled[:3].any() and np.isnan(found["accuracy"][~filled]).all()
    np.testing.assert_allclose(found["accuracy"][filled], accuracy)
    np.testing.assert_allclose(found["confidence"][filled], confidence)


def test_a_whole_weight_is_an_example_repeated(rng):
    probabilities = rng.dirichlet(np.ones(3), 50)
    labels = rng.integers(0, 3, 50)
    weights = rng.integers(1, 4, 50)
    np.testing.assert_allclose(
        adjustment.expected_calibration_error(probabilities, labels, weights=weights),
        adjustment.expected_calibration_error(
            np.repeat(probabilities, weights, axis=0), np.repeat(labels, weights)
        ),
    )


@pytest.mark.parametrize(
    ("confidences", "right", "bins", "message"),
    [
        ([], [], 15, "at least one guess"),
        ([0.5, 0.5], [True], 15, "vectors of the same length"),
        ([0.5], [True], 0, "`bins` must be a whole number of at least 1. Received: 0"),
        ([0.5, 7.2], [True, True], 15, r"must lie in \[0, 1\].*`softmax`. Received: 7.2"),
        ([-0.5], [True], 15, r"must lie in \[0, 1\].*`softmax`. Received: -0.5"),
    ],
)
def test_what_cannot_be_binned_gets_a_sentence(confidences, right, bins, message):
    with pytest.raises(ValueError, match=message):
        adjustment.reliability(np.array(confidences), np.array(right), bins=bins)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
@pytest.mark.parametrize("shift", [0.0, np.array([3.0, 0.0, -2.0])])
def test_the_temperature_that_has_made_the_labels_is_found(temperature, shift, rng):
    logits = rng.normal(scale=4.0, size=(20_000, 3))
    chances = adjustment.softmax(logits / temperature + shift)
    labels = (rng.uniform(size=(len(logits), 1)) > chances.cumsum(axis=1)).sum(axis=1)
    found = adjustment.fit_temperature(logits, labels, shift=shift)
    assert found == pytest.approx(temperature, rel=0.05)


def test_a_whole_weight_is_an_example_repeated_for_the_temperature_too(rng):
    logits, weights = rng.normal(scale=2.0, size=(60, 3)), rng.integers(1, 4, 60)
    labels = (logits + rng.gumbel(scale=2.0, size=(60, 3))).argmax(axis=1)
    again = np.repeat(logits, weights, axis=0), np.repeat(labels, weights)
    for function in (adjustment.fit_temperature, adjustment.negative_log_likelihood):
        assert function(logits, labels, weights=weights) == pytest.approx(
            function(*again), rel=1e-4
        )
        assert function(logits, labels) != pytest.approx(function(*again), rel=1e-3)


def test_large_logits_do_not_overflow():
    logits = np.array([[1000.0, 0.0]])
    assert adjustment.negative_log_likelihood(logits, [0]) == 0
    assert adjustment.negative_log_likelihood(logits, [1]) == 1000
    np.testing.assert_allclose(adjustment.softmax(logits), [[1, 0]])


def test_weights_of_a_prior_give_each_class_its_share_of_the_population():
    weights = adjustment.prior_weights(np.array([0, 0, 0, 1]), np.array([0.5, 0.5]))
    np.testing.assert_allclose(weights, [2 / 3, 2 / 3, 2 / 3, 2])
    np.testing.assert_allclose(adjustment.prior_weights([0, 0, 0, 1], [3, 3]), weights)
    for wrong in ([-1, 2], [0, 1], [np.nan, 1]):
        with pytest.raises(ValueError, match="`prior` must be 2 finite numbers above 0"):
            adjustment.prior_weights([0, 1], wrong)


@pytest.mark.parametrize(
    "prior", [{1: 0.75, 0: 0.25}, Keyed({1: 0.75, 0: 0.25}), pandas_series({1: 0.75, 0: 0.25})]
)
def test_a_prior_with_keys_is_read_by_class_and_not_by_place(prior):
    weights = adjustment.prior_weights(np.array([0, 1]), prior)
    np.testing.assert_allclose(weights, [0.5, 1.5])
    _, target, _ = adjustment.prior_shift(2, counts=[1, 1], target_prior=prior)
    assert target == [0.25, 0.75]
    _, _, source = adjustment.prior_shift(2, counts=prior, target_prior=[1, 1])
    assert source == [0.25, 0.75]


def test_a_prior_may_be_given_by_class_names():
    _, target, source = adjustment.prior_shift(
        2,
        target_prior={"dog": 3, "cat": 1},
        source_prior={"cat": 9, "dog": 1},
        class_names=["cat", "dog"],
    )
    assert (target, source) == ([0.25, 0.75], [0.9, 0.1])
    with pytest.raises(ValueError, match=r"`target_prior` with keys must have as keys"):
        adjustment.prior_shift(2, counts=[1, 1], target_prior={"dog": 3, "cat": 1})


def test_a_source_prior_stands_over_the_counts():
    shift, target, source = adjustment.prior_shift(
        2, counts=np.array([90, 10]), target_prior=[1, 1], source_prior=[1, 3]
    )
    np.testing.assert_allclose(shift, np.log([0.5 / 0.25, 0.5 / 0.75]), rtol=1e-6)
    assert (target, source) == ([0.5, 0.5], [0.25, 0.75])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_prior": [1, 1]}, "`target_prior` needs `counts`"),
        ({"source_prior": [1, 1]}, "`source_prior` needs `target_prior`"),
        ({"target_prior": [1, 0], "counts": [1, 1]}, "`target_prior` must be 2 finite numbers"),
        ({"target_prior": [1, 1], "source_prior": [1, np.inf]}, "`source_prior` must be 2 finite"),
        ({"target_prior": [1], "counts": [1, 1]}, "`target_prior` must have one entry for each"),
        ({"target_prior": {0.5, 0.25}, "counts": [1, 1]}, "`target_prior` must have one entry"),
    ],
)
def test_what_is_no_prior_gets_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        adjustment.prior_shift(2, **arguments)


def test_labels_may_be_a_column_as_keras_has_them(rng):
    logits, labels = rng.normal(size=(50, 3)), rng.integers(0, 3, 50)
    column = labels[:, None]
    assert adjustment.fit_temperature(logits, column) == adjustment.fit_temperature(logits, labels)
    error = adjustment.expected_calibration_error
    chances = adjustment.softmax(logits)
    assert error(chances, column) == error(chances, labels)
    prior = [0.5, 0.25, 0.25]
    np.testing.assert_array_equal(
        adjustment.prior_weights(column, prior), adjustment.prior_weights(labels, prior)
    )


@pytest.mark.parametrize("label", [-1, 3, 0.5])
def test_a_label_that_is_no_class_gets_a_sentence(label):
    logits, labels = np.zeros((2, 3)), np.array([0, label])
    with pytest.raises(ValueError, match="Labels must be whole numbers in 0 … 2"):
        adjustment.fit_temperature(logits, labels)
    with pytest.raises(ValueError, match="Labels must be whole numbers in 0 … 2"):
        adjustment.prior_weights(labels, [1, 1, 1])


def test_a_confidence_that_is_not_a_number_counts_as_zero():
    found = adjustment.reliability(np.array([np.nan, 0.9]), np.array([False, True]), bins=2)
    assert found["count"].tolist() == [1, 1]
    np.testing.assert_allclose(found["confidence"], [0.0, 0.9])


@pytest.mark.parametrize(
    ("scores", "labels"), [(np.ones((2, 2)), [0]), (np.ones(2), [0, 1]), (np.ones((0, 2)), [])]
)
def test_scores_and_labels_that_do_not_fit_get_a_sentence(scores, labels):
    with pytest.raises(ValueError, match=r"Scores must have shape \(n, num_classes\)"):
        adjustment.expected_calibration_error(scores, np.array(labels, int))


def test_numbers_that_are_none_get_a_sentence():
    logits = np.array([[1.0, np.nan], [0.0, 1.0]])
    with pytest.raises(ValueError, match=r"Scores must be finite numbers\. Received: NaN"):
        adjustment.fit_temperature(logits, [0, 1])
    for weights in ([np.nan, 1], [-1, 1], [0, 0]):
        with pytest.raises(ValueError, match="Sample weights must be finite numbers of at least 0"):
            adjustment.reliability([0.5, 0.5], [True, False], weights=weights)


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_a_loss_with_adjustment_knows_what_its_scores_have_learned(tau):
    counts = np.array([900.0, 100.0])
    for loss in (
        keras_ldam.LDAM(counts, tau=tau),
        keras_ldam.LogitAdjusted(counts, tau=tau),
        keras_ldam.VectorScaling(counts, tau=tau),
    ):
        learned = counts ** (1 - tau)
        np.testing.assert_allclose(adjustment.learned_prior(loss), learned / learned.sum())
        # Batches with equally many examples of each class, say.
        drawn = counts**-tau
        found = adjustment.learned_prior(loss, [500, 500])
        np.testing.assert_allclose(found, drawn / drawn.sum())
    with pytest.raises(ValueError, match="or have been lost by `load_weights`"):
        adjustment.learned_prior(keras_ldam.VectorScaling(counts, tau=0.0))
