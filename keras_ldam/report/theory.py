"""The trade-off behind the margins: the paper's bound, and where it is smallest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from keras_ldam.counts import check_counts, check_prior


def bound(
    gammas: Sequence[float] | np.ndarray,
    counts: Sequence[int] | np.ndarray,
    *,
    test_prior: Sequence[float] | np.ndarray | None = None,
) -> np.ndarray:
    """Returns the part of the bound on the balanced test error that the margins decide.

    It is Σ_j 1/(γ_j √n_j); with a test prior p, Σ_j √(K p_j)/(γ_j √n_j), whose minimum is equation
    15 of the paper. Equal p_j give the form without a prior.

    Args:
        gammas: Margins γ, shape `(…, num_classes)`, positive.
        counts: Training examples per class, shape `(num_classes,)`.
        test_prior: Class frequencies p at test time, shape `(num_classes,)`; equal by default.

    Returns:
        Array of shape `(…)`.

    References:
        Cao et al., 2019, theorem 2 and equation 8.
    """
    counts = check_counts(counts)
    weights = 1.0 / np.sqrt(counts)
    if test_prior is not None:
        prior = check_prior("test_prior", test_prior, len(counts))
        weights = weights * np.sqrt(len(counts) * prior)
    return np.asarray(np.sum(weights / np.asarray(gammas, dtype=np.float64), axis=-1))


def best_margins(
    counts: Sequence[int] | np.ndarray,
    *,
    total: float = 1.0,
    test_prior: Sequence[float] | np.ndarray | None = None,
) -> np.ndarray:
    """Returns the margins of a given sum at which `bound` is smallest, γ_j ∝ (p_j/n_j)^(1/4).

    Args:
        counts: Training examples per class, shape `(num_classes,)`.
        total: β = Σ_j γ_j, positive: the room between the classes.
        test_prior: Class frequencies p at test time, shape `(num_classes,)`; equal by default.

    Returns:
        float64 array of shape `(num_classes,)`.

    Example:

    >>> best_margins([10000, 1]).round(3).tolist()
    [0.091, 0.909]

    References:
        Cao et al., 2019, theorem 3: γ_1 = β n_2^(1/4) / (n_1^(1/4) + n_2^(1/4)) for two classes.
    """
    counts = check_counts(counts)
    prior = 1.0 if test_prior is None else check_prior("test_prior", test_prior, len(counts))
    relative = (prior / counts) ** 0.25
    return np.asarray(total * relative / relative.sum())


def minimized(
    counts: Sequence[int] | np.ndarray,
    *,
    test_prior: Sequence[float] | np.ndarray | None = None,
    steps: int = 20_000,
) -> float:
    """Returns γ_1/β of two classes where `bound` is smallest, found by trying `steps` values.

    Args:
        counts: Training examples of the two classes, shape `(2,)`.
        test_prior: Class frequencies p at test time, shape `(2,)`; equal by default.
        steps: Number of values; the answer is exact to 1/steps.
    """
    share = np.arange(1, steps) / steps
    values = bound(np.stack([share, 1 - share], axis=-1), counts, test_prior=test_prior)
    return float(share[np.argmin(values)])
