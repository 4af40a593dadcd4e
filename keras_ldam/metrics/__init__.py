"""Metrics that look at every class, however rare."""

from keras_ldam.metrics.class_errors import ClassErrors
from keras_ldam.metrics.class_margins import ClassMargins, example_margins
from keras_ldam.metrics.class_means import BalancedAccuracy, GMean, MacroF1
from keras_ldam.metrics.mean_average_precision import MeanAveragePrecision
from keras_ldam.metrics.of_probabilities import OfProbabilities

__all__ = [
    "BalancedAccuracy",
    "ClassErrors",
    "ClassMargins",
    "GMean",
    "MacroF1",
    "MeanAveragePrecision",
    "OfProbabilities",
    "example_margins",
]
