"""Label-distribution-aware margins for long-tailed classes, in Keras 3."""

import os as _os

# TensorFlow reads this once, when it is imported. On CPUs with AVX2 only it leaves its fast kernels
# off unless it is asked, at half the speed; where it is set already, or TensorFlow is imported
# already, this changes nothing.
_os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

# So that Keras knows the layers of a finished run's model when it loads it.
from keras_ldam import models as models
from keras_ldam.advice import Advice, advise
from keras_ldam.augmentation import RandomCropFlip
from keras_ldam.callbacks import DRW
from keras_ldam.counts import (
    class_weights,
    long_tailed_counts,
    margins,
    shot_groups,
    step_counts,
)
from keras_ldam.diagnostics import ClassMargins, margin
from keras_ldam.layers import CosineDense
from keras_ldam.losses import (
    LDAM,
    CrossEntropy,
    Focal,
    LDAMHinge,
    cross_entropy,
    focal,
    ldam,
    ldam_hinge,
)
from keras_ldam.metrics import ClassErrors
from keras_ldam.normalization import FusedBatchNormalization
from keras_ldam.optimizers import MomentumSGD

__version__ = "0.1.0"

__all__ = [
    "DRW",
    "LDAM",
    "Advice",
    "ClassErrors",
    "ClassMargins",
    "CosineDense",
    "CrossEntropy",
    "Focal",
    "FusedBatchNormalization",
    "LDAMHinge",
    "MomentumSGD",
    "RandomCropFlip",
    "advise",
    "class_weights",
    "cross_entropy",
    "focal",
    "ldam",
    "ldam_hinge",
    "long_tailed_counts",
    "margin",
    "margins",
    "shot_groups",
    "step_counts",
]


def __getattr__(name: str):
    # TensorFlow is imported by those who export, and not by everyone.
    if name == "export_saved_model":
        from keras_ldam.export import export_saved_model

        return export_saved_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
