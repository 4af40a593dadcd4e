"""Fits of a temperature, of τ and of offsets, and what they change on examples unseen by the fit.

All arrays of scores have the shape `(n, L, C)`: L decisions about each of n examples, each among C
classes. One class among K is `(n, 1, K)`, one sigmoid `(n, 1, 2)` with scores 0 and z, and K labels
are `(n, K, 2)`.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable

import numpy as np

from keras_ldam.adjustment.calibration import TEMPERATURES, log_softmax
from keras_ldam.adjustment.criteria import Criterion, Decisions, best_offsets, sums_by_class

FEW = 20
"""A class with fewer held-out examples than this has no offset of its own among several classes."""

MOST_CLASSES = 200
"""Among more classes decisions get no offsets of their own: each takes a pass over all scores, five
times, in every one of some thirty fits."""

_TAUS = (-1.0, 2.5)
"""The range in which τ is fitted."""

_DRAWS = 100
"""Bootstrap draws for a standard error."""

_STEPS = 100
"""The most steps of Newton's method, and of conjugate gradients within one."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """Held-out examples.

    Args:
        scores: s z, `(n, L, C)`.
        labels: In 0 … C - 1, `(n, L)`.
        weights: `(n, L)`; 0 where the answer is unknown.
    """

    scores: np.ndarray
    labels: np.ndarray
    weights: np.ndarray

    def at(self, index: np.ndarray) -> Examples:
        """Returns some of the examples."""
        return Examples(self.scores[index], self.labels[index], self.weights[index])

    def frequencies(self) -> np.ndarray:
        """Returns the weighted frequency of each class, `(L, C)`."""
        return sums_by_class(self.labels, self.shares(), self.scores.shape[2])

    def shares(self) -> np.ndarray:
        """Returns the weights of each decision with a sum of 1, or of 0 without a known answer."""
        total = self.weights.sum(axis=0)
        return self.weights / np.where(total > 0, total, 1.0)

    def present(self) -> np.ndarray:
        """Returns the number of examples of each class, `(L, C)`."""
        return sums_by_class(self.labels, self.weights > 0, self.scores.shape[2]).astype(np.int64)

    def fewest(self) -> int:
        """Returns the number of examples of the rarest class."""
        return int(self.present().min())


@dataclasses.dataclass(frozen=True)
class Fit:
    """What was found: logits are `factor` · scores + `offsets`.

    Args:
        factor: 1/T.
        offsets: All that is added, `(L, C)`.
        tau: τ, or None where it was neither fitted nor kept.
        kept: What was kept for each decision, `(L,)`: 0 nothing, 1 τ, 2 offsets.
        calibrating: The offsets with which the probabilities fit the examples, `(L, C)`.
        determined: Whether the examples determine T.
    """

    factor: float
    offsets: np.ndarray
    tau: float | None
    kept: np.ndarray
    calibrating: np.ndarray
    determined: bool

    def logits(self, scores: np.ndarray) -> np.ndarray:
        """Returns the adjusted logits."""
        return self.factor * scores + self.offsets


@dataclasses.dataclass(frozen=True)
class Fitter:
    """What is to be fitted, and for what.

    Args:
        criterion: What for.
        base: What is added in any case, `(L, C)`.
        direction: What τ multiplies, -log n of each class centered, `(C,)`; None: no τ.
        factor: 1/T, if it is given.
        offsets: Whether offsets may be fitted.
        seed: Seed of halves, folds and draws.
    """

    criterion: Criterion
    base: np.ndarray
    direction: np.ndarray | None
    factor: float | None
    offsets: bool
    seed: int

    def fit(self, examples: Examples) -> Fit:
        """Fits T, then τ, then offsets, and keeps each only where it gains.

        T minimizes the negative log-likelihood, with τ or offsets beside it, which are then
        replaced by those that are best by the criterion. They are kept where they gain more than
        one standard error on halves of the examples that they were not fitted on.
        """
        classes = examples.scores.shape[2]
        beside = self.direction
        if classes == 2:
            beside = np.array([-0.5, 0.5])
        factor, calibrating, determined = fit_likelihood(
            examples,
            self.base,
            factor=self.factor,
            direction=beside,
            offsets=beside is None and examples.fewest() >= FEW,
        )
        plain = Fit(
            factor,
            self.base,
            None,
            np.zeros(len(self.base), np.int64),
            self.base + calibrating,
            determined,
        )
        if self.criterion.name == "recall_at":  # Without a threshold the floor means nothing.
            return self._richer(2, examples, plain) if self.offsets else plain
        families: list[int] = []
        found = self._apply(families, examples, plain)
        for family in self.families(examples.scores.shape[2], examples.fewest()):
            richer = self._richer(family, examples, found)
            keep = (richer.offsets != found.offsets).any(axis=1)
            keep &= self._gains(families, family, examples, plain)
            if keep.any():
                families.append(family)
                found = dataclasses.replace(
                    richer,
                    offsets=np.where(keep[:, None], richer.offsets, found.offsets),
                    kept=np.where(keep, family, found.kept),
                )
        return found

    def families(self, classes: int, fewest: int) -> list[int]:
        """Returns what is tried, 1 for τ and 2 for offsets, where a class has `fewest` examples."""
        two, many = classes == 2, self.criterion.name != "nll" and classes > MOST_CLASSES
        families = []
        if self.direction is not None and not (two and self.offsets):
            families.append(1)
        if self.offsets and (two or (fewest >= FEW and not many)):
            families.append(2)
        return families

    def _apply(self, families: list[int], examples: Examples, plain: Fit) -> Fit:
        """The fit with one family after the other."""
        found = self._richer(0, examples, plain)
        for family in families:
            found = self._richer(family, examples, found)
        return found

    def _richer(self, family: int, examples: Examples, start: Fit) -> Fit:
        """The fit with nothing (0), τ (1) or offsets (2) in addition."""
        direction = self.direction if family == 1 else None
        if self.criterion.name == "nll":
            factor, added, determined = fit_likelihood(
                examples,
                self.base,
                factor=self.factor,
                direction=direction,
                offsets=family == 2,
            )
            tau = None
            if direction is not None:
                tau = float(added[0] @ direction / (direction @ direction))
            return dataclasses.replace(
                start, factor=factor, offsets=self.base + added, tau=tau, determined=determined
            )
        logits = start.logits(examples.scores)
        if direction is not None:
            tau = self._best_tau(examples, logits)
            return dataclasses.replace(start, offsets=start.offsets + tau * direction, tau=tau)
        if family == 0:
            return start
        columns = zip(np.moveaxis(logits, 1, 0), examples.labels.T, examples.weights.T, strict=True)
        added = np.stack([self._best_offsets(z, y, w) for z, y, w in columns])
        return dataclasses.replace(start, offsets=start.offsets + added)

    def _best_offsets(self, z: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The best offsets of a decision, by the examples whose answer is known."""
        known = weights > 0
        if not known.any():  # In this part of the examples.
            return np.zeros(z.shape[1])
        return best_offsets(z[known], y[known], weights[known], self.criterion)

    def _best_tau(self, examples: Examples, logits: np.ndarray) -> float:
        """The best τ: in steps of a quarter first, then of a twentieth around the best of these."""

        def best(taus: np.ndarray) -> float:
            values = []
            for tau in taus:
                guesses = (logits + tau * self.direction).argmax(axis=2)
                found = Decisions(examples.labels, guesses, examples.weights, logits.shape[2])
                values.append(self.criterion.of(found).mean())
            good = taus[np.array(values) >= max(values) - 1e-12]
            return float(good[np.argmin(abs(good))])

        low, high = _TAUS
        coarse = best(np.arange(low, high + 0.01, 0.25))
        return round(best(coarse + np.arange(-5, 6) * 0.05), 2)

    def _gains(
        self, families: list[int], family: int, examples: Examples, start: Fit
    ) -> np.ndarray:
        """Whether each decision gains by one more family, on halves that the fit has not seen."""
        richer, plain = (np.empty_like(examples.scores) for _ in range(2))
        for test in folds(examples.labels, 2, self.seed):
            part = examples.at(~test)
            before = self._apply(families, part, start)
            plain[test] = before.logits(examples.scores[test])
            richer[test] = self._richer(family, part, before).logits(examples.scores[test])
        if self.criterion.name == "nll":
            better = losses(plain, examples.labels) - losses(richer, examples.labels)
            weights = examples.shares()
            mean = (weights * better).sum(axis=0)
            error = np.sqrt((weights**2 * (better - mean) ** 2).sum(axis=0))
            return mean > error
        guesses = [each.argmax(axis=2) for each in (plain, richer)]

        def gain(index: np.ndarray | slice) -> np.ndarray:
            values = [
                self.criterion.of(
                    Decisions(
                        examples.labels[index],
                        guess[index],
                        examples.weights[index],
                        plain.shape[2],
                    )
                )
                for guess in guesses
            ]
            return values[1] - values[0]

        found = gain(slice(None))
        drawn = np.stack([gain(index) for index in draws(examples.labels, _DRAWS, self.seed)])
        return found > drawn.std(axis=0)

    def cross_fitted(self, examples: Examples, parts: int) -> np.ndarray:
        """Returns logits of which each comes from a fit that has not seen the example."""
        found = np.empty_like(examples.scores)
        for test in folds(examples.labels, parts, self.seed):
            found[test] = self.fit(examples.at(~test)).logits(examples.scores[test])
        return found


def fit_likelihood(
    examples: Examples,
    base: np.ndarray,
    *,
    factor: float | None = None,
    direction: np.ndarray | None = None,
    offsets: bool = False,
) -> tuple[float, np.ndarray, bool]:
    """Minimizes the negative log-likelihood of softmax(a · scores + base + b).

    It is convex in a and b together, so the minimum is unique, but for a constant in b. Newton's
    method finds it, each step by conjugate gradients, without an array of classes and classes, and
    halved until it gains: where scores are large, whole steps go to and fro.

    Args:
        examples: Held-out examples.
        base: `(L, C)`.
        factor: a, if it is given.
        direction: b = τ · direction, `(C,)`. None: no τ.
        offsets: Whether b is free instead.

    Returns:
        a, b of shape `(L, C)`, and whether the examples determine a: it is 1 where they do not.

    References:
        Guo et al., 2017, for a; Alexandari et al., 2020, "Maximum Likelihood with Bias-Corrected
        Calibration is Hard-To-Beat at Label Shift Adaptation", for both together.
    """
    scores, labels = examples.scores, examples.labels[:, :, None]
    weights = examples.shares()
    along = np.zeros(scores.shape[2]) if direction is None else direction
    # The numbers that are fitted are a, τ and offsets, of which not all are free.
    free = np.repeat([factor is None, direction is not None, offsets], [1, 1, base.size])
    found = np.append(factor or 0.0, np.zeros(1 + base.size))

    def added(numbers: np.ndarray) -> np.ndarray:
        return numbers[0] * scores + (numbers[1] * along + numbers[2:].reshape(base.shape))

    def gathered(each: np.ndarray) -> np.ndarray:
        """The transpose of `added`, over the weighted examples."""
        by_class = np.einsum("nl,nlc->lc", weights, each)
        alone = [np.vdot(weights, np.einsum("nlc,nlc->nl", scores, each)), (by_class @ along).sum()]
        return free * np.append(alone, by_class)

    def loss(logits: np.ndarray) -> float:
        return float(np.vdot(weights, losses(logits, examples.labels)))

    def curved(numbers: np.ndarray, p: np.ndarray, ridge: np.ndarray) -> np.ndarray:
        """The product with the second derivatives of the loss."""
        change = added(numbers)
        change -= (p * change).sum(axis=2, keepdims=True)
        return gathered(p * change) + ridge * numbers

    # About the second derivatives where no class is preferred: how the numbers differ in size.
    sizes = [np.vdot(weights, scores.var(axis=2)), along.var() * len(base)]
    sizes = np.maximum(np.append(sizes, examples.frequencies()), 1e-12)
    logits = base + added(found)
    now = loss(logits)
    for _ in range(_STEPS):
        p = np.exp(log_softmax(logits))
        wrong = p.copy()
        np.put_along_axis(wrong, labels, np.take_along_axis(p, labels, axis=2) - 1, axis=2)
        slope = gathered(wrong)
        # It shortens steps where nothing is curved, and vanishes at the minimum.
        ridge = 1e-3 * np.sqrt(slope @ (slope / sizes)) * sizes
        step = _solved(functools.partial(curved, p=p, ridge=ridge), -slope, sizes)
        gain = -float(slope @ step)
        converged = gain < 1e-10 * (1 + now)
        if converged:
            break
        part, change = 1.0, added(step)
        while (new := loss(logits + part * change)) > now - 1e-4 * part * gain and part > 1e-9:
            part /= 2
        found, logits, now = found + part * step, logits + part * change, new
    low, high = 1 / np.array(TEMPERATURES[::-1])
    if factor is None and not low <= found[0] <= high:
        _, b, _ = fit_likelihood(examples, base, factor=1.0, direction=direction, offsets=offsets)
        return 1.0, b, False
    if not converged:
        warnings.warn(
            f"The likelihood did not reach its maximum in {_STEPS} steps: what was fitted may be "
            "far from the best.",
            stacklevel=2,
        )
    b = found[1] * along + found[2:].reshape(base.shape)
    return float(found[0]), b - b.mean(axis=1, keepdims=True), True


def _solved(
    product: Callable[[np.ndarray], np.ndarray], right: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """Solves product(x) = right by conjugate gradients; sizes are about those of its diagonal."""
    x, rest = np.zeros(len(right)), right
    direction = scaled = rest / sizes
    left = first = rest @ scaled
    for _ in range(_STEPS):
        if left <= 1e-6 * first:
            break
        image = product(direction)
        length = left / (direction @ image)
        x, rest = x + length * direction, rest - length * image
        scaled, before = rest / sizes, left
        left = rest @ scaled
        direction = scaled + left / before * direction
    return x


def losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns -log p(label) of each decision, `(n, L)`."""
    return -np.take_along_axis(log_softmax(logits), labels[:, :, None], axis=2)[:, :, 0]


def folds(labels: np.ndarray, parts: int, seed: int) -> list[np.ndarray]:
    """Returns masks of disjoint parts of the examples, `(n,)` each.

    One decision for each example is divided class by class, several are divided at random.
    """
    rng = np.random.default_rng(seed)
    place = np.empty(len(labels), np.int64)
    groups = labels[:, 0] if labels.shape[1] == 1 else np.zeros(len(labels), np.int64)
    order = np.lexsort([rng.random(len(labels)), groups])
    place[order] = np.arange(len(labels)) % parts
    return [place == part for part in range(parts)]


def draws(labels: np.ndarray, number: int, seed: int) -> list[np.ndarray]:
    """Returns bootstrap draws of examples: indices, `(n,)` each.

    One decision for each example is drawn class by class, several are drawn together.
    """
    rng = np.random.default_rng(seed)
    groups = labels[:, 0] if labels.shape[1] == 1 else np.zeros(len(labels), np.int64)
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups)
    starts = np.cumsum(sizes) - sizes
    own = groups[order]
    return [
        order[starts[own] + (rng.random(len(own)) * sizes[own]).astype(np.int64)]
        for _ in range(number)
    ]
