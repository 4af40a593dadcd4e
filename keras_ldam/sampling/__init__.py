"""Class-balanced draws: which examples an epoch holds, decided by counts, seed and epoch alone."""

from keras_ldam.sampling.batches import BalancedBatches, EpochClock, balanced
from keras_ldam.sampling.draws import class_chances, epoch_order
from keras_ldam.sampling.files import BalancedFiles

__all__ = [
    "BalancedBatches",
    "BalancedFiles",
    "EpochClock",
    "balanced",
    "class_chances",
    "epoch_order",
]
