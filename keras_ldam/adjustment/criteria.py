"""What decisions are good for: criteria of them, and the offset that is best by one."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

CRITERIA = ("nll", "balanced_accuracy", "macro_f1", "recall_at", "cost")
"""What `adjust` can fit for; the first is of probabilities, the others are of decisions."""


@dataclasses.dataclass(frozen=True)
class Decisions:
    """L decisions about each of n examples, and what is right in them, class by class.

    There may be thousands of classes, so there is no array of `(C, C)`.

    Args:
        labels: `(n, L)`, in 0 … C - 1.
        guesses: `(n, L)`, likewise.
        weights: `(n, L)`.
        num_classes: C.
    """

    labels: np.ndarray
    guesses: np.ndarray
    weights: np.ndarray
    num_classes: int

    @functools.cached_property
    def held(self) -> np.ndarray:
        """The weight of each class's examples, `(L, C)`."""
        return sums_by_class(self.labels, self.weights, self.num_classes)

    @functools.cached_property
    def guessed(self) -> np.ndarray:
        """The weight of the guesses of each class, `(L, C)`."""
        return sums_by_class(self.guesses, self.weights, self.num_classes)

    @functools.cached_property
    def right(self) -> np.ndarray:
        """The weight of the examples of each class that are guessed right, `(L, C)`."""
        weights = np.where(self.labels == self.guesses, self.weights, 0.0)
        return sums_by_class(self.labels, weights, self.num_classes)


def sums_by_class(labels: np.ndarray, weights: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the sums of weights `(n, L)` by label `(n, L)`, of shape `(L, C)`."""
    decisions = labels.shape[1]
    cells = np.arange(decisions) * num_classes + labels
    counted = np.bincount(cells.ravel(), weights.ravel(), decisions * num_classes)
    return counted.reshape(decisions, num_classes)


@dataclasses.dataclass(frozen=True)
class Criterion:
    """A criterion by which decisions are compared: the higher, the better.

    Args:
        name: One of `CRITERIA`.
        costs: For `"cost"`: row the label, column the guess, `(C, C)`.
        precision: For `"recall_at"`: the least precision.
        class_id: For `"recall_at"`: the class.
        positive_only: For `"macro_f1"`: whether the F1 of class 1 is all that counts, as for each
            of several labels.
    """

    name: str
    costs: np.ndarray | None = None
    precision: float = 0.0
    class_id: int = 1
    positive_only: bool = False

    def of(self, decisions: Decisions) -> np.ndarray:
        """Returns the value of each decision, `(L,)`."""
        own, labels, guesses = decisions.right, decisions.held, decisions.guessed
        if self.costs is not None:
            costs = self.costs[decisions.labels, decisions.guesses]
            weights = decisions.weights
            return -_ratio((weights * costs).sum(axis=0), weights.sum(axis=0))
        if self.name == "recall_at":
            c = self.class_id
            return _at_precision(own[..., c], guesses[..., c], labels[..., c], self.precision)
        if self.name == "macro_f1":
            if self.positive_only:
                return _ratio(2 * own[..., 1], labels[..., 1] + guesses[..., 1])
            return _mean_over(labels > 0, _ratio(2 * own, labels + guesses))
        if self.name == "balanced_accuracy":
            return _mean_over(labels > 0, _ratio(own, labels))
        return _ratio(own.sum(axis=-1), labels.sum(axis=-1))

    def along(
        self, labels: np.ndarray, others: np.ndarray, weights: np.ndarray, c: int, num_classes: int
    ) -> np.ndarray:
        """Returns the values while one example after another changes its guess to class c.

        Args:
            labels: Class of each example, in the order in which they change, `(n,)`.
            others: The guess of each before that, `(n,)`.
            weights: Weight of each, `(n,)`.
            c: The class.
            num_classes: C.

        Returns:
            The value after 0, 1, …, n changes, `(n + 1,)`.
        """
        sizes = np.bincount(labels, weights, num_classes)
        mine = np.where(labels == c, weights, 0.0)
        if self.costs is not None:
            costs = self.costs / sizes.sum()
            before, after = costs[labels, others], costs[labels, c]
            return _cumulated(weights * (before - after)) - (weights * before).sum()
        if self.name == "balanced_accuracy":
            worth = (_ratio(np.ones(num_classes), sizes) / np.count_nonzero(sizes))[labels]
            before, after = worth * (labels == others), worth * (labels == c)
            return (weights * before).sum() + _cumulated(weights * (after - before))
        right, guessed = _cumulated(mine), _cumulated(weights)
        if self.name == "recall_at":
            return _at_precision(right, guessed, np.asarray(sizes[c]), self.precision)
        of_class = _ratio(2 * right, sizes[c] + guessed)
        if self.positive_only:
            return of_class
        # The guesses of each other class become fewer in the order of their changes.
        order = np.argsort(others, kind="stable")
        groups, w = others[order], weights[order]
        hits = np.where(labels[order] == groups, w, 0.0)
        first = np.flatnonzero(np.diff(groups, prepend=-1))
        lengths = np.diff(first, append=len(groups))

        def left(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            totals, summed = np.add.reduceat(values, first), np.cumsum(values)
            before = np.repeat(summed[first] - values[first], lengths)
            return totals, np.repeat(totals, lengths) - (summed - before)

        (all_hits, hits_left), (all_guessed, guessed_left) = left(hits), left(w)
        starts = _ratio(2 * all_hits, sizes[groups[first]] + all_guessed)
        f1 = _ratio(2 * hits_left, sizes[groups] + guessed_left)
        changes = np.diff(f1, prepend=0.0)
        changes[first] = f1[first] - starts
        counted = sizes > 0
        changes, starts = changes * counted[groups], starts * counted[groups[first]]
        by_time = np.empty(len(changes))
        by_time[order] = changes
        total = of_class * counted[c] + starts.sum() + _cumulated(by_time)
        return total / np.count_nonzero(counted)


def best_offset(
    logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, c: int, criterion: Criterion
) -> float:
    """Returns what is best to add to the logits of class c: exact, over all breakpoints.

    Between two breakpoints no guess changes. Of equally good stretches that around 0 is taken,
    else the middle of the widest.
    """
    rows = np.arange(len(labels))
    rivals = logits.copy()
    rivals[:, c] = -np.inf
    others = rivals.argmax(axis=1)
    breakpoints = rivals[rows, others] - logits[:, c]
    order = np.argsort(breakpoints, kind="stable")
    breakpoints = breakpoints[order]
    values = criterion.along(labels[order], others[order], weights[order], c, logits.shape[1])
    ends = np.concatenate([[breakpoints[0] - 2], breakpoints, [breakpoints[-1] + 2]])
    widths = np.diff(ends)
    values = np.where(widths > 1e-9, values, -np.inf)
    best = np.flatnonzero(values >= values.max() - 1e-12)
    if np.any((ends[best] < 0) & (ends[best + 1] > 0)):
        return 0.0
    place = best[np.argmax(widths[best])]
    return float((ends[place] + ends[place + 1]) / 2)


def best_offsets(
    logits: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    criterion: Criterion,
    *,
    rounds: int = 5,
) -> np.ndarray:
    """Returns what is best to add to the logits of each class, by ascent over one at a time.

    For two classes, and where one class is all that counts, this is exact.
    """
    num_classes = logits.shape[1]
    offsets = np.zeros(num_classes)
    if num_classes == 2 or criterion.name == "recall_at":
        c = criterion.class_id
        offsets[c] = best_offset(logits, labels, weights, c, criterion)
        return offsets
    for _ in range(rounds):
        before = offsets.copy()
        for c in range(num_classes):
            offsets[c] += best_offset(logits + offsets, labels, weights, c, criterion)
        if np.array_equal(before, offsets):
            break
    return offsets - offsets.mean()


def _at_precision(
    right: np.ndarray, guessed: np.ndarray, size: np.ndarray, floor: float
) -> np.ndarray:
    """Recall where the precision reaches the floor; elsewhere below 0, by how much it misses."""
    precision = _ratio(right, guessed)
    return np.where(precision >= floor - 1e-12, _ratio(right, size), precision - floor)


def _mean_over(which: np.ndarray, values: np.ndarray) -> np.ndarray:
    return _ratio(np.where(which, values, 0.0).sum(axis=-1), which.sum(axis=-1))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    part, whole = np.broadcast_arrays(part, whole)
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)


def _cumulated(values: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(values)])
