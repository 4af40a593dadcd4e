"""What is done to a trained model: priors, thresholds, a temperature, a head trained anew."""

from keras_ldam.adjustment.adjusted import Adjustment, adjust
from keras_ldam.adjustment.calibration import (
    BINS,
    TEMPERATURES,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability,
    softmax,
)
from keras_ldam.adjustment.measures import Interval
from keras_ldam.adjustment.outputs import (
    read,
    softmax_scale,
    split,
    wants_probabilities,
    with_probabilities,
)
from keras_ldam.adjustment.priors import learned_prior, prior_shift, prior_weights
from keras_ldam.adjustment.retraining import rescale_head, retrain_head, start_from_means

__all__ = [
    "BINS",
    "TEMPERATURES",
    "Adjustment",
    "Interval",
    "adjust",
    "expected_calibration_error",
    "fit_temperature",
    "learned_prior",
    "negative_log_likelihood",
    "prior_shift",
    "prior_weights",
    "read",
    "reliability",
    "rescale_head",
    "retrain_head",
    "softmax",
    "softmax_scale",
    "split",
    "start_from_means",
    "wants_probabilities",
    "with_probabilities",
]
