"""Label-distribution-aware margins for long-tailed classes, in Keras 3."""

from keras_ldam import schedules as schedules
from keras_ldam.adjustment import (
    Adjustment,
    adjust,
    rescale_head,
    retrain_head,
    start_from_means,
    with_probabilities,
)
from keras_ldam.advice import Advice, advise
from keras_ldam.callbacks import DRW
from keras_ldam.counting import count
from keras_ldam.counts import (
    class_weights,
    long_tailed_counts,
    margins,
    shot_groups,
    step_counts,
)
from keras_ldam.export import export_saved_model
from keras_ldam.layers import CosineDense, FusedBatchNormalization, RandomCropFlip
from keras_ldam.losses import (
    LDAM,
    AsymmetricFocal,
    CrossEntropy,
    Focal,
    LDAMHinge,
    LogitAdjusted,
    VectorScaling,
    asymmetric_focal,
    cross_entropy,
    focal,
    ldam,
    ldam_hinge,
    logit_adjusted,
    set_class_weights,
    vector_scaling,
)
from keras_ldam.metrics import (
    BalancedAccuracy,
    ClassErrors,
    ClassMargins,
    GMean,
    MacroF1,
    MeanAveragePrecision,
    OfProbabilities,
    example_margins,
)
from keras_ldam.optimizers import MomentumSGD
from keras_ldam.sampling import BalancedFiles, EpochClock, augment, augmented, balanced, mixed
from keras_ldam.sharding import ShardedBatches, ShardedClasses
from keras_ldam.version import __version__ as __version__
from keras_ldam.wrappers import (
    AdversarialTraining,
    ChunkedTraining,
    SharpnessAwareTraining,
    estimate_batch_norm,
)

__all__ = [
    "DRW",
    "LDAM",
    "Adjustment",
    "AdversarialTraining",
    "Advice",
    "AsymmetricFocal",
    "BalancedAccuracy",
    "BalancedFiles",
    "ChunkedTraining",
    "ClassErrors",
    "ClassMargins",
    "CosineDense",
    "CrossEntropy",
    "EpochClock",
    "Focal",
    "FusedBatchNormalization",
    "GMean",
    "LDAMHinge",
    "LogitAdjusted",
    "MacroF1",
    "MeanAveragePrecision",
    "MomentumSGD",
    "OfProbabilities",
    "RandomCropFlip",
    "ShardedBatches",
    "ShardedClasses",
    "SharpnessAwareTraining",
    "VectorScaling",
    "adjust",
    "advise",
    "asymmetric_focal",
    "augment",
    "augmented",
    "balanced",
    "class_weights",
    "count",
    "cross_entropy",
    "estimate_batch_norm",
    "example_margins",
    "export_saved_model",
    "focal",
    "ldam",
    "ldam_hinge",
    "logit_adjusted",
    "long_tailed_counts",
    "margins",
    "mixed",
    "rescale_head",
    "retrain_head",
    "set_class_weights",
    "shot_groups",
    "start_from_means",
    "step_counts",
    "vector_scaling",
    "with_probabilities",
]
