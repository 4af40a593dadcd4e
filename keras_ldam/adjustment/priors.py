"""Other class frequencies than those of the data: weights of examples, shifts of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_ldam import counts as class_counts
from keras_ldam.adjustment.calibration import column_or_vector
from keras_ldam.labels import check_labels
from keras_ldam.losses import ClassWeightedLoss


def prior_weights(
    labels: Sequence[int] | np.ndarray, prior: Sequence[float] | np.ndarray | Mapping[int, float]
) -> np.ndarray:
    """Returns weights under which examples stand for a population with other class frequencies.

    Args:
        labels: Class of each example, shape `(n,)` or `(n, 1)`.
        prior: Class frequencies of the population π, of any sum, shape `(num_classes,)`, or by
            class.

    Returns:
        π_y / (share of class y in `labels`) for each example, shape `(n,)`.

    Raises:
        ValueError: if a label is not a class, or `prior` is not one number above 0 per class.

    Example:

    >>> prior_weights([0, 0, 0, 1], [0.5, 0.5]).round(3).tolist()
    [0.667, 0.667, 0.667, 2.0]
    """
    prior = class_counts.check_prior("prior", prior, len(prior))
    labels = column_or_vector(labels)
    check_labels(labels, len(prior))
    labels = labels.astype(np.int64)
    shares = np.bincount(labels, minlength=len(prior)) / len(labels)
    return prior[labels] / shares[labels]


def prior_shift(
    num_classes: int,
    *,
    counts: Sequence[int] | np.ndarray | Mapping[Any, int] | None = None,
    target_prior: Sequence[float] | np.ndarray | Mapping[Any, float] | None = None,
    source_prior: Sequence[float] | np.ndarray | Mapping[Any, float] | None = None,
    class_names: Sequence[str] | None = None,
) -> tuple[np.ndarray, list[float] | None, list[float] | None]:
    """Returns the shift of the logits to another prior, log π_j - log ρ_j.

    Args:
        num_classes: K.
        counts: Training examples per class, in class order or by class; used as ρ without
            `source_prior`.
        target_prior: π, class frequencies where the model is used: K numbers above 0, normalized
            here, or such numbers by class. None: no shift.
        source_prior: ρ, class frequencies that the scores have learned, in the same form.
        class_names: Names that may stand for the classes where there are keys.

    Returns:
        The shift, float32 of shape `(num_classes,)`, and the normalized target and source priors;
        both are None without a target prior.

    Raises:
        ValueError: if a prior is not K finite numbers above 0, or there is no source prior.

    Example:

    >>> shift, target, source = prior_shift(2, counts=[90, 10], target_prior=[1, 1])
    >>> print(shift.round(3), target, source)
    [-0.588  1.609] [0.5, 0.5] [0.9, 0.1]

    References:
        Saerens et al., 2002, "Adjusting the Outputs of a Classifier to New a Priori
        Probabilities".
    """
    if target_prior is None:
        if source_prior is not None:
            raise ValueError(
                "`source_prior` needs `target_prior`. Received: "
                f"target_prior=None, source_prior={source_prior}"
            )
        return np.zeros(num_classes, np.float32), None, None
    if source_prior is None:
        if counts is None:
            raise ValueError(
                "`target_prior` needs `counts`, the training examples per class, or "
                "`source_prior`. Received: counts=None, source_prior=None"
            )
        source_prior = counts
    target = class_counts.check_prior(
        "target_prior", target_prior, num_classes, class_names=class_names
    )
    source = class_counts.check_prior(
        "source_prior", source_prior, num_classes, class_names=class_names
    )
    shift = np.log(target) - np.log(source)
    return shift.astype(np.float32), target.tolist(), source.tolist()


def learned_prior(loss: ClassWeightedLoss | None, counts: Any = None) -> np.ndarray:
    """Returns the class frequencies that a trained model's scores have learned, by its loss.

    Args:
        loss: The loss that the model is compiled with; None where it has none with counts.
        counts: See `ClassWeightedLoss.learned_prior`.

    Raises:
        ValueError: where they are unknown: if all class weights are 1, a loss without logit
            adjustment has either been without weights in training, or has lost them since.
    """
    if loss is None or (
        loss.tau == 0 and np.all(keras.ops.convert_to_numpy(loss.class_weights) == 1)
    ):
        raise ValueError(
            "`target_prior` needs `source_prior`, the class frequencies that the scores have "
            "learned: the loss of this model has no class weights other than 1, which may be those "
            "it was trained with, or have been lost by `load_weights` or `compile`. Pass "
            "source_prior=counts after training without class weights, and equal numbers after "
            "training with weights 1/n."
        )
    return loss.learned_prior(counts).reshape(-1)  # Of one label with counts `(1, 2)`, too.
