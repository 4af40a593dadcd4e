"""How far probabilities can be trusted, and the temperature that makes them trustworthy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_ldam import extras
from keras_ldam.adjustment.batches import check_weights
from keras_ldam.counts import check_whole
from keras_ldam.labels import check_labels

TEMPERATURES = (0.05, 20.0)
"""The range in which a temperature is fitted."""

BINS = 15
"""Bins of confidence, as in Guo et al., 2017."""


def reliability(
    confidences: Sequence[float] | np.ndarray,
    right: Sequence[bool] | np.ndarray,
    *,
    weights: Sequence[float] | np.ndarray | None = None,
    bins: int = BINS,
) -> dict[str, Any]:
    """Returns how often guesses of a given confidence are right.

    Bin b of B holds the guesses whose confidence lies in (b/B, (b+1)/B].

    Args:
        confidences: Probability of each guess, in [0, 1], shape `(n,)`; NaN counts as 0.
        right: Whether each guess is right, shape `(n,)`.
        weights: Weight of each guess, ≥ 0, shape `(n,)`. Defaults to equal weights.
        bins: B, the number of bins of equal width, at least 1.

    Returns:
        `"confidence"` and `"accuracy"` of each bin (weighted means, NaN for an empty bin),
        `"count"`, the number of guesses in each bin, and `"ece"`, the expected calibration error
        Σ_b W_b/W |accuracy_b - confidence_b|, where W_b is the sum of the bin's weights.

    Raises:
        ValueError: if the shapes do not fit, there is no guess, `bins` is below 1, or a confidence
            or weight is out of its range.

    Example:

    >>> found = reliability(np.array([0.75, 0.75]), np.array([True, False]), bins=2)
    >>> found["count"].tolist(), found["ece"]
    ([0, 2], 0.25)

    References:
        Guo et al., 2017, "On Calibration of Modern Neural Networks", section 2.
    """
    confidences = np.asarray(confidences, dtype=np.float64)
    confidences = np.where(np.isnan(confidences), 0.0, confidences)
    right = np.asarray(right, dtype=np.float64)
    weights = np.ones(len(right)) if weights is None else np.asarray(weights, dtype=np.float64)
    if not len(right) or not confidences.shape == right.shape == weights.shape == (len(right),):
        raise ValueError(
            "`confidences`, `right` and `weights` must be vectors of the same length, with at "
            f"least one guess. Received: shapes {confidences.shape}, {right.shape} and "
            f"{weights.shape}"
        )
    check_whole("bins", bins, 1)
    check_weights(weights)
    outside = confidences[(confidences < 0) | (confidences > 1.01)]
    if outside.size:
        raise ValueError(
            "Probabilities must lie in [0, 1]; those of scores are their `softmax`. Received: "
            f"{outside[0]:.4g}"
        )
    place = np.clip(np.ceil(confidences * bins).astype(np.int64) - 1, 0, bins - 1)

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(place, values, minlength=bins)

    weight, sum_right, sum_confidence = map(sums, (weights, weights * right, weights * confidences))
    with np.errstate(invalid="ignore"):
        return {
            "confidence": sum_confidence / weight,
            "accuracy": sum_right / weight,
            "count": np.bincount(place, minlength=bins),
            "ece": float(np.abs(sum_right - sum_confidence).sum() / weight.sum()),
        }


def expected_calibration_error(
    probabilities: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    *,
    weights: Sequence[float] | np.ndarray | None = None,
    bins: int = BINS,
) -> float:
    """Returns the mean distance between confidence and accuracy, the `"ece"` of `reliability`.

    Args:
        probabilities: Shape `(n, num_classes)`; the largest is the guess and its confidence.
        labels: Class of each example, shape `(n,)` or `(n, 1)`.
        weights: Weight of each example, ≥ 0, shape `(n,)`. Defaults to equal weights.
        bins: See `reliability`.

    Returns:
        A fraction in [0, 1].

    Raises:
        ValueError: if the shapes do not fit, a label is not a class, there is no example, the
            probabilities are outside of [0, 1], or a weight is below 0 or not finite.

    Example:

    >>> expected_calibration_error(np.array([[0.75, 0.25], [0.75, 0.25]]), np.array([0, 1]))
    0.25
    """
    probabilities, labels, weights = _check(probabilities, labels, weights)
    right = probabilities.argmax(axis=1) == labels
    return reliability(probabilities.max(axis=1), right, weights=weights, bins=bins)["ece"]


def fit_temperature(
    logits: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    *,
    weights: Sequence[float] | np.ndarray | None = None,
    shift: np.ndarray | float = 0.0,
) -> float:
    """Returns the temperature T under which softmax(logits / T + shift) fits the labels best.

    It minimizes the weighted mean of -log p(label), which is convex in 1/T, so the minimum is
    unique. The search is bounded by `TEMPERATURES`; the result lies at one end if no T inside is
    best, for example if all examples are right.

    Args:
        logits: Shape `(n, num_classes)`.
        labels: Class of each example, shape `(n,)` or `(n, 1)`.
        weights: Weight of each example, ≥ 0, shape `(n,)`. Defaults to equal weights.
        shift: Added after the division, shape `(num_classes,)`; see `prior_shift`.

    Returns:
        T.

    Raises:
        ValueError: if the shapes do not fit, a label is not a class, there is no example, a logit
            is not finite, or a weight is below 0 or not finite.

    Example:

    ```python
    logits, labels = keras_ldam.evaluation.scores(model, validation_batches)
    temperature = fit_temperature(logits, labels)
    ```

    References:
        Guo et al., 2017, "On Calibration of Modern Neural Networks", section 4.2.
    """
    with extras.needed("export", by="fit_temperature"):
        from scipy import optimize

    logits, labels, weights = _check(logits, labels, weights)
    found = optimize.minimize_scalar(
        lambda log: negative_log_likelihood(logits / np.exp(log) + shift, labels, weights=weights),
        bounds=np.log(TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def negative_log_likelihood(
    logits: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    *,
    weights: Sequence[float] | np.ndarray | None = None,
) -> float:
    """Returns the weighted mean of -log softmax(logits)[label], in nats.

    Arguments and errors are those of `fit_temperature`.
    """
    logits, labels, weights = _check(logits, labels, weights)
    return float(np.average(-log_softmax(logits)[np.arange(len(labels)), labels], weights=weights))


def softmax(logits: Sequence[float] | np.ndarray) -> np.ndarray:
    """Returns exp(z_j) / Σ_k exp(z_k) over the last axis, in float64."""
    return np.exp(log_softmax(np.asarray(logits, dtype=np.float64)))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the logarithm of `softmax`, precise where probabilities are 0 or 1."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def column_or_vector(labels: Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns labels of shape `(n,)` or `(n, 1)` as `(n,)`, others as they are."""
    labels = np.asarray(labels)
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _check(
    scores: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    weights: Sequence[float] | np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores = np.asarray(scores, dtype=np.float64)
    labels = column_or_vector(labels)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=np.float64)
    if scores.ndim != 2 or not len(scores) or not labels.shape == weights.shape == (len(scores),):
        raise ValueError(
            "Scores must have shape (n, num_classes), `labels` and `weights` shape (n,), with at "
            f"least one example. Received: shapes {scores.shape}, {labels.shape} and "
            f"{weights.shape}"
        )
    check_labels(labels, scores.shape[1])
    check_weights(weights)
    if not np.all(np.isfinite(scores)):
        raise ValueError("Scores must be finite numbers. Received: NaN or infinity")
    return scores, labels.astype(np.int64), weights
