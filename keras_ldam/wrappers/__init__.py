"""Wrapper models with training steps that Keras lacks."""

from keras_ldam.wrappers.adversarial import AdversarialTraining
from keras_ldam.wrappers.averaging import estimate_batch_norm
from keras_ldam.wrappers.chunked import ChunkedTraining
from keras_ldam.wrappers.sharpness import SharpnessAwareTraining
from keras_ldam.wrappers.two_passes import TwoPasses

__all__ = [
    "AdversarialTraining",
    "ChunkedTraining",
    "SharpnessAwareTraining",
    "TwoPasses",
    "estimate_batch_norm",
]
