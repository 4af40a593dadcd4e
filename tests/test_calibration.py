"""Reliability and its error, by hand and against scikit-learn's bins."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from keras_ldam import calibration


def test_bins_hold_their_right_end_and_their_means_are_those_of_hand(rng):
    found = calibration.reliability(
        np.array([0.5, 0.4, 0.6, 1.0, 0.0]), np.array([True, False, True, True, False]), bins=2
    )
    assert found["count"].tolist() == [3, 2]
    np.testing.assert_allclose(found["confidence"], [0.3, 0.8])
    np.testing.assert_allclose(found["accuracy"], [1 / 3, 1.0])
    np.testing.assert_allclose(found["ece"], (abs(0.9 - 1) + abs(1.6 - 2)) / 5)


def test_bins_are_those_of_scikit_learn_and_empty_ones_are_not_numbers(rng):
    confidences = rng.uniform(0.3, 1.0, 400)
    right = rng.uniform(size=400) < confidences**2
    found = calibration.reliability(confidences, right, bins=10)
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
        calibration.expected_calibration_error(probabilities, labels, weights=weights),
        calibration.expected_calibration_error(
            np.repeat(probabilities, weights, axis=0), np.repeat(labels, weights)
        ),
    )


@pytest.mark.parametrize(
    ("confidences", "right", "bins", "message"),
    [
        ([], [], 15, "at least one guess"),
        ([0.5, 0.5], [True], 15, "vectors of one length"),
        ([0.5], [True], 0, "bins must be at least 1; received 0"),
    ],
)
def test_what_cannot_be_binned_gets_a_sentence(confidences, right, bins, message):
    with pytest.raises(ValueError, match=message):
        calibration.reliability(np.array(confidences), np.array(right), bins=bins)
