"""Layers: the cosine head that margins are measured on, and what the published recipes need."""

from keras_ldam.layers.cosine_dense import CosineDense, UnitColumns
from keras_ldam.layers.fused_batch_normalization import FusedBatchNormalization
from keras_ldam.layers.heads import gives_cosines, gives_probabilities
from keras_ldam.layers.random_crop_flip import RandomCropFlip

__all__ = [
    "CosineDense",
    "FusedBatchNormalization",
    "RandomCropFlip",
    "UnitColumns",
    "gives_cosines",
    "gives_probabilities",
]
