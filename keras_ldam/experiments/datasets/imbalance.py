"""Which training examples are kept: the imbalanced subset, and a validation part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from keras_ldam import counts as class_counts
from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets.data import Data, Split


def imbalanced(
    config: Config,
    class_names: Sequence[str],
    train: Split,
    test: Split,
    *,
    test_name: str = "test",
    skipped: Sequence[str] = (),
) -> Data:
    """Makes the data of a config from all training examples and the whole test split.

    Args:
        config: Gives the imbalance and its ratio, the share of the kept training examples that
            replaces the test split for validation, alone or with those that are not kept, and the
            seed of both choices.
        class_names: Name of each class, in class order.
        train: All training examples.
        test: The test split.
        test_name: `"test"`, or `"validation"` where that is what the test split is.
        skipped: See `Data`.

    Raises:
        ValueError: if the imbalance empties a class.
    """
    counts = profile(config.imbalance, train.labels, len(class_names), config.imbalance_ratio)
    kept, held = select(train.labels, counts, config)
    return Data(
        config.dataset_name,
        tuple(class_names),
        train=train.take(kept),
        test=test if held is None else train.take(held),
        test_name=test_name if held is None else "validation",
        skipped=tuple(skipped),
    )


def profile(
    imbalance: str, labels: np.ndarray, num_classes: int, imbalance_ratio: float
) -> np.ndarray:
    """Counts per class of the imbalanced training set that `labels` allow.

    Args:
        imbalance: `"longtail"`, `"step"` or `"none"`.
        labels: Class of each available example.
        num_classes: Number of classes.
        imbalance_ratio: ρ ≥ 1; not used with `"none"`.

    Returns:
        int64 array, shape `(num_classes,)`. The largest class keeps as many examples as the
        smallest available class has, so that every class can take every place.

    Raises:
        ValueError: if the profile is unknown, or the ratio is below 1 or empties a class.
    """
    available = np.bincount(labels, minlength=num_classes)
    if imbalance == "none":
        return available
    if imbalance == "longtail":
        return class_counts.long_tailed_counts(num_classes, int(available.min()), imbalance_ratio)
    if imbalance == "step":
        return class_counts.step_counts(num_classes, int(available.min()), imbalance_ratio)
    raise ValueError(
        f"`imbalance` must be one of longtail, step, none. Received: imbalance={imbalance!r}"
    )


def imbalanced_indices(labels: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """Indices of the kept examples: class by class, the first n_j after a shuffle.

    One generator serves all classes in label order and shuffles each class's indices, in file
    order, in place. This is the rule of the official LDAM code: the same seed keeps the same
    images.

    Args:
        labels: Class of each available example, in file order.
        counts: How many to keep of each class.
        seed: Seed of the shuffle; 0 in the official code.

    Returns:
        int64 array, shape `(sum(counts),)`, ordered by class.

    Raises:
        ValueError: if a class has fewer examples than its count.
    """
    generator = np.random.RandomState(seed)
    kept = []
    for label, count in enumerate(counts):
        indices = np.flatnonzero(labels == label)
        if len(indices) < count:
            raise ValueError(
                f"`counts` must be at most the examples of each class. Received: {count} for class "
                f"{label}, which has {len(indices)} examples"
            )
        generator.shuffle(indices)
        kept.append(indices[:count])
    return np.concatenate(kept)


def hold_out(
    labels: np.ndarray, fraction: float, seed: int, *, fold: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Splits examples into a training part and a validation part, class by class.

    Args:
        labels: Class of each example.
        fraction: Share of each class to hold out, in (0, 1); at least one example of each class
            is held out, and at least one stays.
        seed: Seed of the choice.
        fold: Which part of each shuffled class, from zero. For the same seed, folds hold out
            different examples, and 1 / `fraction` of them all; those of a class with fewer
            examples than folds overlap.

    Returns:
        Indices of the training part and of the validation part.

    Raises:
        ValueError: if a class has a single example.
    """
    generator = np.random.RandomState(seed)
    parts = []
    for label in np.unique(labels):
        indices = generator.permutation(np.flatnonzero(labels == label))
        if len(indices) < 2:
            raise ValueError(
                f"class {label} has a single example, so none can be held out for validation."
            )
        start, end = (round(fraction * part * len(indices)) for part in (fold, fold + 1))
        start = min(start, len(indices) - 1)  # Classes with few examples: folds overlap.
        held = np.s_[start : min(max(start + 1, end), start + len(indices) - 1)]
        parts.append((np.delete(indices, held), indices[held]))
    train, validation = (np.sort(np.concatenate(part)) for part in zip(*parts, strict=True))
    return train, validation


def select(
    labels: np.ndarray, counts: np.ndarray, config: Config
) -> tuple[np.ndarray, np.ndarray | None]:
    """Chooses the training examples and, if the config asks for them, validation examples.

    Args:
        labels: Class of each available training example, in file order.
        counts: How many to keep of each class.
        config: Gives `seed`, `validation_fraction`, `validation_fold` and `left_out`.

    Returns:
        Indices into `labels` of the training examples, and of the validation examples or None:
        some of the kept ones and, with `left_out`, after them all that are not kept.
    """
    kept = imbalanced_indices(labels, counts, config.seed)
    if not config.validation_fraction:
        return kept, None
    train, held = hold_out(
        labels[kept], config.validation_fraction, config.seed, fold=config.validation_fold
    )
    held = kept[held]
    if config.left_out:
        held = np.concatenate([held, np.setdiff1d(np.arange(len(labels)), kept)])
    return kept[train], held
