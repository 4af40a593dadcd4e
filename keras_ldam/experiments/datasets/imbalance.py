"""Which training examples are kept: the imbalanced subset, and a validation part."""

from __future__ import annotations

import numpy as np

from keras_ldam import counts as class_counts
from keras_ldam.experiments.config import Config


def profile(
    imbalance: str, labels: np.ndarray, num_classes: int, imbalance_ratio: float
) -> np.ndarray:
    """Counts per class of the imbalanced training set that `labels` allow.

    Args:
        imbalance: `"longtail"`, `"step"` or `"none"`.
        labels: Class of each available example.
        num_classes: K.
        imbalance_ratio: ρ ≥ 1; not used with `"none"`.

    Returns:
        int64 array `[num_classes]`. The largest class keeps as many examples as the smallest
        available class has, so that every class can take every place.

    Raises:
        ValueError: for an unknown profile, a ratio below 1 or one that empties a class.
    """
    available = np.bincount(labels, minlength=num_classes)
    if imbalance == "none":
        return available
    if imbalance == "longtail":
        return class_counts.long_tailed_counts(num_classes, int(available.min()), imbalance_ratio)
    if imbalance == "step":
        return class_counts.step_counts(num_classes, int(available.min()), imbalance_ratio)
    raise ValueError(f"unknown imbalance {imbalance!r}; known: longtail, step, none.")


def imbalanced_indices(labels: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """Indices of the kept examples: class by class, the first n_j after a shuffle.

    One generator serves all classes in label order, each class's indices (in file order) being
    shuffled in place: the rule of the official LDAM code, so that the same seed keeps the same
    images.

    Args:
        labels: Class of each available example, in file order.
        counts: How many to keep of each class.
        seed: Seed of the shuffle; 0 in the official code.

    Returns:
        int64 array `[sum(counts)]`, ordered by class.

    Raises:
        ValueError: if a class has fewer examples than are to be kept.
    """
    generator = np.random.RandomState(seed)
    kept = []
    for label, count in enumerate(counts):
        indices = np.flatnonzero(labels == label)
        if len(indices) < count:
            raise ValueError(f"class {label} has {len(indices)} examples, {count} are to be kept.")
        generator.shuffle(indices)
        kept.append(indices[:count])
    return np.concatenate(kept)


def hold_out(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits examples into a part to train on and a part to validate on, class by class.

    Args:
        labels: Class of each example.
        fraction: Share of each class to hold out, in (0, 1); at least one example of each class
            is held out, and at least one stays.
        seed: Seed of the choice.

    Returns:
        Indices of the training part and of the validation part.

    Raises:
        ValueError: if a class has one example only.
    """
    generator = np.random.RandomState(seed)
    parts = []
    for label in np.unique(labels):
        indices = generator.permutation(np.flatnonzero(labels == label))
        if len(indices) < 2:
            raise ValueError(
                f"class {label} has a single example, so none can be held out for validation."
            )
        held = min(len(indices) - 1, max(1, round(fraction * len(indices))))
        parts.append((indices[held:], indices[:held]))
    train, validation = (np.sort(np.concatenate(part)) for part in zip(*parts, strict=True))
    return train, validation


def select(
    labels: np.ndarray, counts: np.ndarray, config: Config
) -> tuple[np.ndarray, np.ndarray | None]:
    """Indices of the examples to train on and, where the config asks for it, to validate on.

    Args:
        labels: Class of each available training example, in file order.
        counts: How many to keep of each class.
        config: Its `seed` and `validation_fraction` are used.

    Returns:
        Indices into `labels` of the training examples, and of the validation examples (taken
        from those that were kept) or None.
    """
    kept = imbalanced_indices(labels, counts, config.seed)
    if not config.validation_fraction:
        return kept, None
    train, held = hold_out(labels[kept], config.validation_fraction, config.seed)
    return kept[train], kept[held]
