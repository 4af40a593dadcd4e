"""How far probabilities can be believed, and the temperature that mends them."""

from __future__ import annotations

import numpy as np

TEMPERATURES = (0.05, 20.0)
"""The temperatures that are looked at."""

BINS = 15
"""Bins of confidence, as in Guo et al., 2017."""


def reliability(
    confidences: np.ndarray,
    right: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    bins: int = BINS,
) -> dict:
    """How often guesses of a given confidence are right.

    Bin b of B holds the guesses whose confidence lies in (b/B, (b+1)/B].

    Args:
        confidences: Probability of each guess, 0 to 1, shape `[n]`; one that is not a number
            counts as 0.
        right: Whether it is right, shape `[n]`.
        weights: Of each guess, ≥ 0, shape `[n]`; equal ones by default.
        bins: B, at least 1, all of the same width.

    Returns:
        Of each bin `"confidence"` and `"accuracy"` (weighted means, 0 to 1; NaN for an empty bin)
        and `"count"`, the guesses in it; and `"ece"`, the expected calibration error
        Σ_b W_b/W |accuracy_b - confidence_b|, where W_b is the sum of the bin's weights.

    Raises:
        ValueError: for shapes that do not fit, no guess, or fewer than one bin.

    Example:

    >>> found = reliability(np.array([0.75, 0.75]), np.array([True, False]), bins=2)
    >>> found["count"].tolist(), found["ece"]
    ([0, 2], 0.25)

    References:
        Guo et al., 2017, "On Calibration of Modern Neural Networks", section 2.
    """
    confidences = np.nan_to_num(np.asarray(confidences, dtype=np.float64))
    right = np.asarray(right, dtype=np.float64)
    weights = np.ones(len(right)) if weights is None else np.asarray(weights, dtype=np.float64)
    if not len(right) or not confidences.shape == right.shape == weights.shape == (len(right),):
        raise ValueError(
            "confidences, right and weights must be vectors of one length, with at least one "
            f"guess; received shapes {confidences.shape}, {right.shape} and {weights.shape}."
        )
    if bins < 1:
        raise ValueError(f"bins must be at least 1; received {bins}.")
    place = np.clip(np.ceil(confidences * bins).astype(np.int64) - 1, 0, bins - 1)

    def sums(values):
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
    labels: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    bins: int = BINS,
) -> float:
    """Mean distance of confidence and accuracy: the `"ece"` of `reliability`.

    Args:
        probabilities: Of each class, shape `[n, K]`; the largest is the guess and its confidence.
        labels: Class of each example, shape `[n]`.
        weights: Of each example, ≥ 0, shape `[n]`; equal ones by default.
        bins: As for `reliability`.

    Returns:
        A fraction in [0, 1].

    Raises:
        ValueError: as `reliability`.

    Example:

    >>> expected_calibration_error(np.array([[0.75, 0.25], [0.75, 0.25]]), np.array([0, 1]))
    0.25
    """
    probabilities, labels, weights = _check(probabilities, labels, weights)
    right = probabilities.argmax(axis=1) == labels
    return reliability(probabilities.max(axis=1), right, weights=weights, bins=bins)["ece"]


def fit_temperature(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    shift: np.ndarray | float = 0.0,
) -> float:
    """The temperature T under which softmax(logits / T + shift) explains the labels best.

    It minimises the weighted mean of -log p(label). That is convex in 1/T, so the minimum is
    unique; it is looked for in `TEMPERATURES`, and lies at their end where no T within is best
    (all examples right, say).

    Args:
        logits: Shape `[n, K]`.
        labels: Class of each example, shape `[n]`.
        weights: Of each example, ≥ 0, shape `[n]`; equal ones by default.
        shift: Added after the division, shape `[K]`; see `export_saved_model`.

    Returns:
        T.

    Raises:
        ValueError: for shapes that do not fit, or no example.

    References:
        Guo et al., 2017, "On Calibration of Modern Neural Networks", section 4.2.
    """
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
    logits: np.ndarray, labels: np.ndarray, *, weights: np.ndarray | None = None
) -> float:
    """Weighted mean of -log softmax(logits)[label], in nats; arguments as in `fit_temperature`."""
    logits, labels, weights = _check(logits, labels, weights)
    return float(np.average(-_log_softmax(logits)[np.arange(len(labels)), labels], weights=weights))


def softmax(logits: np.ndarray) -> np.ndarray:
    """exp(z_j) / Σ_k exp(z_k) over the last axis, in float64."""
    return np.exp(_log_softmax(np.asarray(logits, dtype=np.float64)))


def prior_weights(labels: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Weights under which examples stand for a population with another class distribution.

    Args:
        labels: Class of each example, shape `[n]`.
        prior: π, the population's class frequencies, shape `[K]`.

    Returns:
        π_y / (share of class y in `labels`) for each example, shape `[n]`.
    """
    shares = np.bincount(labels, minlength=len(prior)) / len(labels)
    return np.asarray(prior, dtype=np.float64)[labels] / shares[labels]


def _log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _check(scores, labels, weights):
    scores = np.asarray(scores, dtype=np.float64)
    labels = np.asarray(labels)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=np.float64)
    if scores.ndim != 2 or not len(scores) or not len(scores) == len(labels) == len(weights):
        raise ValueError(
            "scores must be [n, classes], labels and weights [n], with at least one example; "
            f"received shapes {scores.shape}, {labels.shape} and {weights.shape}."
        )
    return scores, labels, weights
