"""Arithmetic on class counts: how many examples, which margins, which weights.

NumPy only. `counts` is always the number of training examples per class, in class order.
"""

from __future__ import annotations

import numbers
import sys
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

WEIGHTINGS = ("effective", "inverse")
_LARGEST = 2.0**53
"""Up to here a float64 is exact."""


def check_counts(
    counts: Sequence[int] | np.ndarray | Mapping[Any, int],
    class_names: Sequence[str] | None = None,
    *,
    multi_label: bool = False,
) -> np.ndarray:
    """Returns `counts` as an int64 vector in class order, or a matrix of labels and sides.

    Args:
        counts: Training examples per class, shape `(num_classes,)`; whole numbers of at least 1,
            for at least two classes. Whole-valued floats are accepted. What has keys, such as
            `collections.Counter(labels)` or pandas' `labels.value_counts()`, is put into the order
            of the classes; see `in_class_order`.
        class_names: Name of each class, where keys may be names.
        multi_label: Whether they may be those of labels that do not exclude each other, shape
            `(num_labels, 2)`: how many examples lack each label, and how many have it.

    Raises:
        ValueError: if `counts` is anything else; the message names the first class at fault.
    """
    if hasattr(counts, "items"):
        counts = in_class_order("counts", counts, len(list(counts.items())), class_names)
    if isinstance(counts, np.ndarray) and counts.dtype.kind in "iu" and counts.ndim == 1:
        given = np.asarray(counts)
        # Counts that are in order need no copies for an error: there may be 10⁷.
        if len(given) > 1 and given.min() >= 1 and given.max() <= _LARGEST:
            return given.astype(np.int64)
    try:
        values = np.asarray(counts, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"`counts` must be whole numbers, one for each class. Received: {shown(counts)}"
        ) from None
    sides = multi_label and values.ndim == 2 and values.shape[1] == 2 and len(values)
    if not sides and (values.ndim != 1 or values.size < 2):
        hint = ""
        if values.ndim == 2:
            hint = " If these are labels, count them: keras_ldam.count(labels)."
            if values.shape[1] > 1:
                hint = " If these are one-hot labels, add them up: labels.sum(axis=0)."
        raise ValueError(
            "`counts` must be a vector with one entry for each of at least two classes. Received: "
            f"shape {values.shape}.{hint}"
        )
    fractions = np.all(values >= 0) and np.any(values != np.floor(values))
    if fractions and np.any(np.isclose(values.sum(), [1, 100], rtol=0.02)):
        raise ValueError(
            "`counts` must be numbers of training examples, not shares of them. Received: "
            f"{shown(counts)}; multiply by the number of examples."
        )
    bad = np.argwhere(~((values >= 1) & (values <= _LARGEST) & (values == np.floor(values))))
    if bad.size:
        j = int(bad[0][0])
        name = f"class {j}" if class_names is None else f"class {j} ({class_names[j]})"
        if sides:
            name = f"the {('negatives', 'positives')[bad[0][1]]} of label {j}"
        raise ValueError(
            "`counts` must be whole numbers from 1 to 2**53. Received: "
            f"{values[tuple(bad[0])]:g} for {name}.{_hint(values)}"
        )
    return values.astype(np.int64)


def _hint(values: np.ndarray) -> str:
    whole = np.all((values >= 0) & (values == np.floor(values)))
    if whole and values.ndim == 2 and values.max() == 1:
        return " If these are one-hot labels, add them up: labels.sum(axis=0)."
    if whole and values.ndim == 2:
        return " A label that all examples have, or none, cannot be learned: drop it."
    if whole and values.size > 2 * (values.max() + 1):
        return " If these are labels, count them: keras_ldam.count(labels)."
    if whole:
        return " A class without training examples has no margin: drop it or give it examples."
    return ""


def in_class_order(
    name: str, values: Any, num_classes: int, class_names: Sequence[str] | None = None
) -> list[Any]:
    """Returns values per class as a list in class order: the one reader of all of them.

    Args:
        name: What the values are called in an error.
        values: A sequence in class order, or what has keys: a dictionary, a pandas Series. Keys are
            the classes 0 … num_classes - 1, in any order, or their names.
        num_classes: K.
        class_names: Name of each class, where keys may be names.

    Raises:
        ValueError: if there is not exactly one value per class.

    Example:

    >>> in_class_order("weights", {1: 0.3, 0: 0.7}, 2)
    [0.7, 0.3]
    >>> in_class_order("weights", {"dog": 0.3, "cat": 0.7}, 2, ["cat", "dog"])
    [0.7, 0.3]
    """
    if not hasattr(values, "items"):
        # A set has no order, and a string is one name.
        if not hasattr(values, "__iter__") or isinstance(values, (str, bytes, Set)):
            raise ValueError(
                f"`{name}` must have one entry for each of the {num_classes} classes. Received: "
                f"{shown(values)}"
            )
        ordered = list(values)
        if len(ordered) != num_classes:
            raise ValueError(
                f"`{name}` must have one entry for each of the {num_classes} classes. Received: "
                f"{len(ordered)}"
            )
        return ordered
    pairs = list(values.items())
    found = dict(pairs)
    for keys in (range(num_classes), () if class_names is None else class_names):
        if len(pairs) == len(found) == num_classes and set(found) == set(keys):
            return [found[key] for key in keys]
    known = f"the classes 0 … {num_classes - 1}"
    if class_names is not None:
        known += f" or their names ({', '.join(map(str, class_names[:6]))}"
        known += ", …)" if num_classes > 6 else ")"
    raise ValueError(
        f"`{name}` with keys must have as keys {known}, each once. Received: "
        f"{shown([key for key, _ in pairs])}"
    )


def check_names(class_names: Any, num_classes: int) -> list[str]:
    """Returns class names in class order.

    Args:
        class_names: A sequence, or what has keys; see `in_class_order`.
        num_classes: K.

    Raises:
        ValueError: if there is not exactly one name per class, or two are equal.
    """
    names = [str(name) for name in in_class_order("class_names", class_names, num_classes)]
    if len(set(names)) < num_classes:
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"`class_names` must differ. Received: {twice!r} more than once")
    return names


class ClassNumbers(Sequence[str]):
    """The numbers of classes as their names, each made when it is read: there may be 10⁷.

    Args:
        num_classes: K.

    Example:

    >>> names = ClassNumbers(10_000_000)
    >>> names[9_999_999], names[:3]
    ('9999999', ('0', '1', '2'))
    """

    def __init__(self, num_classes: int) -> None:
        self._classes = range(num_classes)

    def __len__(self) -> int:
        return len(self._classes)

    def __getitem__(self, j: Any) -> Any:
        found = self._classes[j]
        return tuple(map(str, found)) if isinstance(found, range) else str(found)


def per_class(
    name: str, values: Any, num_classes: int, class_names: Sequence[str] | None = None
) -> np.ndarray:
    """Returns numbers per class as a float64 vector in class order; see `in_class_order`.

    Raises:
        ValueError: if there is not exactly one number per class.
    """
    ordered = values
    if not isinstance(values, np.ndarray) or values.shape != (num_classes,):
        # Not of a right array, since a list of 10⁷ numbers takes a gigabyte.
        ordered = in_class_order(name, values, num_classes, class_names)
    try:
        numbers = np.asarray(ordered, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = np.empty((0, 0))
    if numbers.shape != (num_classes,):
        raise ValueError(
            f"`{name}` must be {num_classes} numbers, one for each class. Received: "
            f"{shown(ordered)}"
        )
    return numbers


def shown(values: Any) -> str:
    """Returns what stands for a value in an error, one line of at most 120 signs."""
    text = " ".join(repr(values).split())
    return text if len(text) <= 120 else f"{text[:117]}…"


def long_tailed_counts(num_classes: int, max_count: int, imbalance_ratio: float) -> np.ndarray:
    """Exponentially decaying counts, n_i = ⌊n_max ρ^(-i/(K-1))⌋ for class i = 0 … K-1.

    Args:
        num_classes: K, at least 2.
        max_count: n_max, examples of class 0, the most frequent one.
        imbalance_ratio: ρ = largest count / smallest count, at least 1.

    Returns:
        int64 array of shape `(num_classes,)`, non-increasing.

    Raises:
        ValueError: if an argument is out of range, or if ρ leaves a class without an example.

    Example:

    >>> long_tailed_counts(10, 5000, 100).tolist()
    [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]

    References:
        Cui et al., 2019, "Class-Balanced Loss Based on Effective Number of Samples", section 5.1;
        the truncation is the one of the official LDAM code.
    """
    _check_profile(num_classes, max_count, imbalance_ratio)
    exponents = np.arange(num_classes) / (num_classes - 1)
    return _non_empty(max_count * (1.0 / imbalance_ratio) ** exponents, max_count, imbalance_ratio)


def step_counts(num_classes: int, max_count: int, imbalance_ratio: float) -> np.ndarray:
    """Step counts: the first half of the classes has n_max examples, the second ⌊n_max / ρ⌋.

    Args:
        num_classes: K, even.
        max_count: n_max.
        imbalance_ratio: ρ, at least 1.

    Returns:
        int64 array of shape `(num_classes,)`.

    Raises:
        ValueError: if an argument is out of range, K is odd, or ρ empties a class.

    Example:

    >>> step_counts(4, 500, 100).tolist()
    [500, 500, 5, 5]

    References:
        Buda et al., 2018, "A systematic study of the class imbalance problem".
    """
    _check_profile(num_classes, max_count, imbalance_ratio)
    if num_classes % 2:
        raise ValueError(
            "Step imbalance halves the classes, so `num_classes` must be even. Received: "
            f"{num_classes}"
        )
    half = int(num_classes) // 2
    few = max_count / imbalance_ratio
    return _non_empty(
        np.repeat(np.array([max_count, few], dtype=np.float64), half), max_count, imbalance_ratio
    )


def _check_profile(num_classes: int, max_count: int, imbalance_ratio: float) -> None:
    check_whole("num_classes", num_classes, 2)
    check_whole("max_count", max_count, 1)
    real = isinstance(imbalance_ratio, numbers.Real)
    if not real or not 1 <= imbalance_ratio <= sys.float_info.max:
        raise ValueError(
            "`imbalance_ratio` is the largest count divided by the smallest, so it must be at "
            f"least 1. Received: {imbalance_ratio!r}"
        )


def _non_empty(values: np.ndarray, max_count: int, imbalance_ratio: float) -> np.ndarray:
    # A power such as 100 ** -0.5 can land just below a whole number (499.99999999999994):
    # the published vectors come from plain truncation, so truncation it is.
    counts = values.astype(np.int64)
    if counts.min() < 1:
        raise ValueError(
            f"`imbalance_ratio` leaves class {int(np.argmin(counts))} without an example; use at "
            f"most {max_count}, the size of the largest class. Received: {imbalance_ratio:g}"
        )
    return counts


def margins(
    counts: Sequence[int] | Mapping[Any, int] | np.ndarray,
    *,
    max_margin: float = 0.5,
    exponent: float = 0.25,
    test_prior: Sequence[float] | Mapping[Any, float] | np.ndarray | None = None,
) -> np.ndarray:
    """Label-distribution-aware margins, Δ_j = C / n_j^(1/4).

    The constant C is not free: it is what makes the largest margin, that of the rarest class,
    equal to `max_margin`. So C = max_margin · n_min^(1/4).

    Args:
        counts: Training examples per class n_j, shape `(num_classes,)`, or per label and side,
            `(num_labels, 2)`: each label is then a problem of two classes with a C of its own.
        max_margin: Largest margin, in units of the cosine between features and class vector
            (which ranges over [-1, 1]); 0 to 2. The paper uses 0.5 for CIFAR and 0.3 for
            iNaturalist 2018; "as large as possible without under-fitting". 0 gives no margin.
        exponent: 1/4 in the paper's theorem. 0 gives the same margin to every class (the rows M
            of the paper); 1/3 is the paper's remark on fast rates.
        test_prior: Class frequencies n'_j expected at test time, any positive scale; then
            Δ_j ∝ (n'_j / n_j)^exponent. By default all classes count the same.

    Returns:
        float32 array of the shape of `counts`.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> print(margins([12500, 1250]).round(4))
    [0.2812 0.5   ]

    References:
        Cao et al., 2019, "Learning Imbalanced Datasets with Label-Distribution-Aware Margin
        Loss", equation 13, and equation 15 for a known test prior.
    """
    counts = check_counts(counts, multi_label=True)
    check_range("max_margin", max_margin, 0, 2)
    check_range("exponent", exponent, 0, 1)
    ratio = 1.0 / counts
    if test_prior is not None:
        ratio = ratio * check_prior("test_prior", test_prior, _num_classes("test_prior", counts))
    relative = ratio**exponent
    return (max_margin * relative / relative.max(axis=-1, keepdims=True)).astype(np.float32)


def _num_classes(name: str, counts: np.ndarray) -> int:
    if counts.ndim == 2:
        raise ValueError(
            f"`{name}` is for classes that exclude each other. Received: `counts` of labels and "
            f"sides, shape {counts.shape}"
        )
    return len(counts)


def check_prior(
    name: str,
    prior: Sequence[float] | np.ndarray | Mapping[Any, float],
    num_classes: int,
    *,
    class_names: Sequence[str] | None = None,
) -> np.ndarray:
    """Returns class frequencies as probabilities.

    Args:
        name: Argument to name in an error.
        prior: One number above 0 per class, of any sum, in class order or by class; see
            `per_class`.
        num_classes: K.
        class_names: See `per_class`.

    Returns:
        float64 array of shape `(num_classes,)` with sum 1.

    Raises:
        ValueError: if `prior` is anything else.
    """
    values = per_class(name, prior, num_classes, class_names)
    if not np.all(np.isfinite(values) & (values > 0)):
        raise ValueError(
            f"`{name}` must be {num_classes} finite numbers above 0, one per class. Received: "
            f"{shown(values.tolist())}"
        )
    return values / values.sum()


def check_range(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> None:
    """Raises `ValueError` unless `value` is a finite number in [low, high] (or (low, high])."""
    number: float = np.nan
    if isinstance(value, numbers.Real):  # A whole number may be beyond every float.
        number = int(value) if isinstance(value, numbers.Integral) else float(value)
    inside = low <= number <= min(high, sys.float_info.max)
    if not inside or (open_low and number == low):
        wanted = f"a number in {'(' if open_low else '['}{low:g}, {high:g}]"
        if high == np.inf:
            wanted = f"a finite number {'above' if open_low else 'of at least'} {low:g}"
        raise ValueError(f"`{name}` must be {wanted}. Received: {shown(value)}")


def check_whole(name: str, value: Any, least: int) -> None:
    """Raises `ValueError` unless `value` is a whole number of at least `least`."""
    whole = isinstance(value, numbers.Integral)
    whole = whole or (isinstance(value, numbers.Real) and float(value).is_integer())
    if isinstance(value, bool) or not whole or value < least:
        raise ValueError(
            f"`{name}` must be a whole number of at least {least}. Received: {shown(value)}"
        )


def check_flag(name: str, value: Any) -> None:
    """Raises `ValueError` unless `value` is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"`{name}` must be True or False. Received: {shown(value)}")


def class_weights(
    counts: Sequence[int] | Mapping[Any, int] | np.ndarray,
    *,
    kind: str = "effective",
    beta: float = 0.9999,
) -> np.ndarray:
    """Weights per class, normalized to sum to the number of classes.

    Args:
        counts: Training examples per class n_j, shape `(num_classes,)`, or per label and side,
            `(num_labels, 2)`: the weights of each label's two sides then sum to 2.
        kind: `"effective"`: w_j ∝ (1-β) / (1-β^n_j), the inverse effective number of examples;
            `"inverse"`: w_j ∝ 1/n_j.
        beta: β of the effective number, 0 to below 1. 0 gives equal weights; β → 1 gives 1/n_j.

    Returns:
        float32 array of the shape of `counts` with mean 1.

    Raises:
        ValueError: for an unknown `kind`, or an argument out of range.

    Example:

    >>> print(class_weights([12500, 1250]).round(3))
    [0.283 1.717]

    References:
        Cui et al., 2019, "Class-Balanced Loss Based on Effective Number of Samples", equation 10.
    """
    counts = check_counts(counts, multi_label=True)
    if kind == "inverse":
        weights = 1.0 / counts
    elif kind == "effective":
        if not (isinstance(beta, numbers.Real) and 0 <= beta < 1):
            raise ValueError(f"`beta` must be a number in [0, 1). Received: {beta!r}")
        # 1 - β^n by expm1, since β^n is close to 1 for the rare classes.
        weights = np.ones(counts.shape)
        if beta > 0:
            weights = -1.0 / np.expm1(counts * np.log(beta))
    else:
        raise ValueError(
            f"Unknown kind of class weights {kind!r}; available: {', '.join(WEIGHTINGS)}."
        )
    total = weights.sum(axis=-1, keepdims=True)
    return (weights * counts.shape[-1] / total).astype(np.float32)


def shot_groups(
    counts: Sequence[int] | Mapping[Any, int] | np.ndarray, *, many: int = 100, few: int = 20
) -> dict[str, np.ndarray]:
    """Classes by how many training examples they have.

    Args:
        counts: Training examples per class, shape `(num_classes,)`, or per label and side,
            `(num_labels, 2)`, of which the positives count.
        many: A class with more examples than this is in `"many"`.
        few: A class with fewer examples than this is in `"few"`; the others are `"medium"`. At
            most `many` + 1.

    Returns:
        `{"many": indices, "medium": indices, "few": indices}`; a group can be empty.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> {name: len(classes) for name, classes in shot_groups([500, 60, 20, 5]).items()}
    {'many': 1, 'medium': 2, 'few': 1}

    References:
        Kang et al., 2020, "Decoupling Representation and Classifier for Long-Tailed Recognition".
    """
    counts = check_counts(counts, multi_label=True)
    check_range("many", many, 0, np.inf)
    check_range("few", few, 0, many + 1)  # Of more, a class could be in both groups.
    if counts.ndim == 2:
        counts = counts[:, 1]
    return {
        "many": np.flatnonzero(counts > many),
        "medium": np.flatnonzero((counts <= many) & (counts >= few)),
        "few": np.flatnonzero(counts < few),
    }
