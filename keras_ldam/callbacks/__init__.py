"""Callbacks: deferred re-weighting."""

from keras_ldam.callbacks.drw import DRW

__all__ = ["DRW"]
