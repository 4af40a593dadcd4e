"""Metrics that look at every class, however rare."""

from keras_ldam.metrics.class_errors import ClassErrors
from keras_ldam.metrics.class_margins import ClassMargins, example_margins

__all__ = ["ClassErrors", "ClassMargins", "example_margins"]
