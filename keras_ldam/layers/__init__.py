"""Layers: the cosine head that margins are measured on, and what the published recipes need."""

from keras_ldam.layers.cosine_dense import CosineDense, UnitColumns
from keras_ldam.layers.fused_batch_normalization import FusedBatchNormalization
from keras_ldam.layers.heads import (
    applied_activation,
    cosine_heads,
    gives_probabilities,
    inputs_of,
    linear_heads,
    outputs_of,
)
from keras_ldam.layers.probabilities import Probabilities
from keras_ldam.layers.random_crop_flip import RandomCropFlip

__all__ = [
    "CosineDense",
    "FusedBatchNormalization",
    "Probabilities",
    "RandomCropFlip",
    "UnitColumns",
    "applied_activation",
    "cosine_heads",
    "gives_probabilities",
    "inputs_of",
    "linear_heads",
    "outputs_of",
]
