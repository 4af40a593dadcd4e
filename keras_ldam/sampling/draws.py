"""Which classes and examples are drawn, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_ldam import counts as class_counts


def class_chances(
    counts: Sequence[int] | Mapping[Any, int] | np.ndarray, power: float = 1.0
) -> np.ndarray:
    """Returns the probability of each class in balanced draws, P(j) ∝ n_j^(1 - power).

    Args:
        counts: Training examples per class n_j, shape `(num_classes,)`.
        power: From 0 to 2: 0 for the frequencies of the data, 1 for equal ones, 0.5 for those of
            the square roots of the counts, 2 for reversed ones.

    Returns:
        float64 array of shape `(num_classes,)` with sum 1.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> class_chances([900, 100], 0.5).tolist()
    [0.75, 0.25]

    References:
        Kang et al., 2020, "Decoupling Representation and Classifier for Long-Tailed Recognition",
        equation 1, with q = 1 - power; Zhou et al., 2020, "BBN: Bilateral-Branch Network with
        Cumulative Learning for Long-Tailed Visual Recognition", for power 2.
    """
    counts = class_counts.check_counts(counts)
    class_counts.check_range("power", power, 0, 2)
    chances = counts ** (1.0 - power)
    return np.asarray(chances / chances.sum())


def epoch_order(
    labels: np.ndarray, *, seed: int, epoch: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """Returns indices of one epoch's examples, as many as labels.

    Args:
        labels: Class of each example, shape `(n,)`.
        seed: Seed of the draws.
        epoch: Epoch, from zero.
        weights: Weights per class w_j: n draws with replacement, where P(example) ∝ w of its class.
            Defaults to every example once, shuffled.

    Returns:
        int64 array, shape `(n,)`.
    """
    generator = np.random.default_rng([seed, epoch])
    if weights is None:
        return generator.permutation(len(labels))
    chances = np.asarray(weights, dtype=np.float64)[labels]
    return generator.choice(len(labels), size=len(labels), p=chances / chances.sum())


def check_held(held: np.ndarray) -> None:
    """Raises `ValueError` for a class without an example, which cannot be drawn."""
    if not held.all():
        raise ValueError(
            f"`data` must have an example of each of the {len(held)} classes. Received: none of "
            f"class {np.argmin(held)}"
        )


def tell(counts: np.ndarray, drawn: np.ndarray, when: str, *, about: bool = False) -> None:
    """Prints how often each class is drawn, beside how often it is there."""
    shown = [np.array2string(row, threshold=24, max_line_width=10**6) for row in (counts, drawn)]
    print(
        f"Balanced draws: of {shown[0]} examples per class, {when} draws "
        f"{'about ' if about else ''}{shown[1]}.",
        flush=True,
    )
