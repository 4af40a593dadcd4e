"""Losses for long-tailed classes: cross-entropy, focal, LDAM, logit adjustment, vector scaling.

Each loss has two faces. The function gives one value for each example; the class adds counts, class
weights and the weighted mean, and is what `model.compile(loss=…)` takes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_ldam.losses.asymmetric_focal import AsymmetricFocal, asymmetric_focal
from keras_ldam.losses.base import (
    ClassWeightedLoss,
    MarginLoss,
    check_class_weights,
    compile_again,
    in_chunks,
    local_batches,
    set_class_weights,
    weighted_losses,
)
from keras_ldam.losses.chunks import Chunks, Negatives, SampledChunks
from keras_ldam.losses.cross_entropy import CrossEntropy, cross_entropy
from keras_ldam.losses.focal import Focal, focal
from keras_ldam.losses.ldam import LDAM, ldam
from keras_ldam.losses.ldam_hinge import LDAMHinge, ldam_hinge
from keras_ldam.losses.logit_adjusted import LogitAdjusted, logit_adjusted
from keras_ldam.losses.vector_scaling import VectorScaling, vector_scaling

__all__ = [
    "LDAM",
    "LOSSES",
    "AsymmetricFocal",
    "Chunks",
    "ClassWeightedLoss",
    "CrossEntropy",
    "Focal",
    "LDAMHinge",
    "LogitAdjusted",
    "MarginLoss",
    "NamedLoss",
    "Negatives",
    "SampledChunks",
    "VectorScaling",
    "asymmetric_focal",
    "check_class_weights",
    "compile_again",
    "cross_entropy",
    "focal",
    "in_chunks",
    "ldam",
    "ldam_hinge",
    "local_batches",
    "logit_adjusted",
    "set_class_weights",
    "vector_scaling",
    "weighted_losses",
]


@dataclasses.dataclass(frozen=True)
class NamedLoss:
    """What there is to know of a loss that configs and reports call by a name.

    Args:
        loss: Its class.
        arguments: Which settings of a run it takes, by the name of its argument.
        fixed: Arguments that belong to the name.
        renamed: Settings of a run that are called otherwise than its argument.
    """

    loss: type[ClassWeightedLoss]
    arguments: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def wants_cosines(self) -> bool:
        """Whether it measures a margin, so that the model must end in `CosineDense`."""
        return issubclass(self.loss, MarginLoss)

    def make(
        self, counts: Sequence[int] | np.ndarray, settings: Mapping[str, Any]
    ) -> ClassWeightedLoss:
        """Makes the loss.

        Args:
            counts: Training examples per class, shape `(num_classes,)`.
            settings: Values of `arguments`; other keys are ignored.
        """
        given = {name: settings[self.renamed.get(name, name)] for name in self.arguments}
        return self.loss(counts, **given, **self.fixed)


_MARGIN = ("max_margin", "scale")
_LDAM = (*_MARGIN, "gradual")
_UNIFORM = {"exponent": 0.0}

LOSSES = {
    "cross_entropy": NamedLoss(CrossEntropy),
    "focal": NamedLoss(Focal, ("gamma",)),
    # Summed over weights of mean 1 and divided by the batch's size, as in Cui et al., 2019, whose
    # numbers its row in the paper is; all others divide by the sum of the weights.
    "sigmoid_focal": NamedLoss(
        Focal, ("gamma",), {"form": "sigmoid", "reduction": "sum_over_batch_size"}
    ),
    "ldam": NamedLoss(LDAM, _LDAM),
    "uniform_margin": NamedLoss(LDAM, _LDAM, _UNIFORM),
    "ldam_adjusted": NamedLoss(LDAM, (*_LDAM, "tau")),
    "ldam_hinge": NamedLoss(LDAMHinge, _MARGIN),
    "hinge": NamedLoss(LDAMHinge, _MARGIN, _UNIFORM),
    "logit_adjusted": NamedLoss(LogitAdjusted, ("tau",)),
    # A run's `gamma` is the focus of the focal losses.
    "vector_scaling": NamedLoss(VectorScaling, ("tau", "gamma"), renamed={"gamma": "vs_gamma"}),
}
"""Every loss by the name that configs and reports give it: its class and its arguments."""
