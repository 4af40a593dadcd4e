"""Batches to train on, balanced by class, mixed or augmented; seed and epoch decide all draws."""

from keras_ldam.sampling.augmentation import augment, augmented
from keras_ldam.sampling.batches import BalancedBatches, EpochClock, balanced
from keras_ldam.sampling.draws import class_chances, epoch_order
from keras_ldam.sampling.files import BalancedFiles
from keras_ldam.sampling.mixing import mixed

__all__ = [
    "BalancedBatches",
    "BalancedFiles",
    "EpochClock",
    "augment",
    "augmented",
    "balanced",
    "class_chances",
    "epoch_order",
    "mixed",
]
