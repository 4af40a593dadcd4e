"""Mixup and CutMix with a partner that is drawn by its class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_ldam import counts as class_counts
from keras_ldam.sampling.batches import BalancedBatches, balanced

MIXTURES = ("mixup", "cutmix")


def mixed(
    data: Any,
    how: str,
    counts: Sequence[int] | Mapping[Any, int] | np.ndarray | None = None,
    *,
    power: float | Callable[[int], float] = 1.0,
    alpha: float = 1.0,
    probability: float | Callable[[int], float] = 1.0,
    majority: bool = False,
    augment: Callable[[Any, np.random.Generator], Any] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    verbose: int = 1,
) -> MixedBatches:
    """Mixes each training example with one that is drawn so that rare classes come more often.

    With an example (x, y) of the shuffled epoch, a partner (x', y') whose class is drawn with
    P(j) ∝ n_j^(1 - power), labels one-hot, and λ ~ Beta(alpha, alpha) for each pair:

    - `"mixup"`: λ x + (1 - λ) x', with label λ y + (1 - λ) y'. Of pixels in uint8 the result is
      rounded.
    - `"cutmix"`: a rectangle of x', of 1 - λ of its area, is pasted into x at its own place. Its
      center is anywhere in the image; what lies outside is cut off, and λ is then the share of x
      that remains.

    The result has soft labels, which all losses of this library take. Rare examples appear on many
    backgrounds instead of being repeated unchanged. What is drawn depends on seed, epoch and batch
    alone. Mixing comes before what layers of the model do to images, such as shifts and mirrors,
    which the two images of a mixture then share.

    For partners from the same batch, as frequent as they are, use `keras.layers.MixUp` and
    `keras.layers.CutMix`; these cannot take a partner from elsewhere.

    Args:
        data: Arrays `(x, y)` or a `keras.utils.PyDataset` of such batches. Labels are whole
            numbers, `(n,)` or `(n, 1)`, or one-hot, `(n, num_classes)`. For CutMix x are images
            `(n, height, width, channels)`.
        how: `"mixup"` or `"cutmix"`.
        counts: As in `keras_ldam.balanced`.
        power: From 0 to 2, for partners as frequent as they are, 1 for equal classes, 2 for
            reversed frequencies; or a function from the epoch, counted from zero, to that number.
        alpha: Parameter of the Beta distribution, above 0 and at most 100; 1 is uniform.
        probability: Share of the examples that are mixed, from 0 to 1; or a function from the
            epoch to it, to leave the first or the last epochs as they are.
        majority: Whether λ is at least 1/2, before a rectangle is cut off, so that the partner is
            the smaller part: max(λ, 1 - λ).
        augment: What changes x of a batch, and x of its partners, before they are mixed: a function
            of x and of a `numpy.random.Generator`, such as `keras_ldam.augment`. Defaults to none.
        batch_size: As in `keras_ldam.balanced`.
        seed: Seed of the draws, a whole number of at least 0.
        verbose: 1 to print how often partners of each class are drawn, 0 for silence.

    Returns:
        Batches `(x, y)` with y of float32, `(batch, num_classes)`, as a `keras.utils.PyDataset`.
        Pass `keras_ldam.EpochClock(batches)` to `fit` among its callbacks.

    Raises:
        ValueError: for an argument out of range, data in another form, or x that cannot be mixed.

    Example:

    >>> images, labels = np.zeros((100, 8, 8, 3), "uint8"), np.repeat([0, 1], [90, 10])
    >>> batches = mixed((images, labels), "cutmix", batch_size=20, verbose=0)
    >>> x, y = batches[0]
    >>> x.shape, y.shape, y.sum(axis=1).round(4).tolist() == [1.0] * 20
    ((20, 8, 8, 3), (20, 2), True)

    References:
        Zhang et al., 2018, "mixup: Beyond Empirical Risk Minimization"; Yun et al., 2019, "CutMix:
        Regularization Strategy to Train Strong Classifiers with Localizable Features"; Park et al.,
        2022, "The Majority Can Help the Minority: Context-rich Minority Oversampling for
        Long-tailed Classification", for CutMix with rare partners: power 2, probability 0.5,
        majority.
    """
    check_mixture(how, alpha)
    class_counts.check_flag("majority", majority)
    if not callable(probability):
        class_counts.check_range("probability", probability, 0, 1)
    parts = tuple(data) if isinstance(data, (tuple, list)) else ()
    if hasattr(data, "element_spec") or len(parts) == 3:
        received = "a tf.data.Dataset" if len(parts) != 3 else "sample weights"
        raise ValueError(
            f"`data` must be arrays `(x, y)` or a `keras.utils.PyDataset`. Received: {received}"
        )
    if not callable(power):
        class_counts.check_range("power", power, 0, 2)
    first = balanced(data, counts, power=0.0, batch_size=batch_size, seed=seed, verbose=0)
    # Another stream of random numbers than that of any usual seed and epoch.
    partners = first.again(power=power, seed=first.seed + 2**96)
    if verbose:
        partners.tell()
    return MixedBatches(
        first,
        partners,
        how,
        alpha=float(alpha),
        probability=probability,
        majority=bool(majority),
        augment=augment,
    )


class MixedBatches(keras.utils.PyDataset):
    """Batches of mixtures, which `mixed` makes."""

    def __init__(
        self,
        first: BalancedBatches,
        partners: BalancedBatches,
        how: str,
        *,
        alpha: float,
        probability: float | Callable[[int], float],
        majority: bool,
        augment: Callable[[Any, np.random.Generator], Any] | None = None,
    ):
        super().__init__()
        self.first, self.partners, self.how = first, partners, how
        self.alpha, self.probability, self.majority = alpha, probability, majority
        self.augment = augment

    @property
    def epoch(self) -> int:
        """Epoch whose batches are given, from zero."""
        return self.first.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.first.epoch = self.partners.epoch = epoch

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, index: int) -> Any:
        epoch = self.epoch
        (x, y), (partner, other) = _pair(self.first[index]), _pair(self.partners[index])
        probability = self.probability(epoch) if callable(self.probability) else self.probability
        class_counts.check_range("probability", probability, 0, 1)
        if self.augment is not None:
            generator = np.random.default_rng([self.first.seed, epoch, 5, index])
            x, partner = self.augment(x, generator), self.augment(partner, generator)
        x, shares = mix(
            self.how,
            x,
            partner,
            np.random.default_rng([self.first.seed, epoch, 4, index]),
            alpha=self.alpha,
            probability=probability,
            majority=self.majority,
        )
        num_classes = len(self.first.counts)
        return x, soft_labels(one_hot(y, num_classes), one_hot(other, num_classes), shares)

    def on_epoch_end(self) -> None:
        """Goes on to the next epoch; an `EpochClock` says which that is."""
        self.epoch += 1


def _pair(batch: Any) -> Any:
    if len(batch) != 2:
        raise ValueError(
            "`data` must give batches `(x, y)`, without sample weights. Received: "
            f"{len(batch)} parts"
        )
    return batch


def mix(
    how: str,
    first: Any,
    second: Any,
    generator: np.random.Generator,
    *,
    alpha: float = 1.0,
    probability: float = 1.0,
    majority: bool = False,
) -> tuple[Any, np.ndarray]:
    """Mixes the examples of two batches, pair by pair; see `mixed`.

    Args:
        how: `"mixup"` or `"cutmix"`.
        first: An array, `(batch, …)`, or for mixup a structure of arrays.
        second: The same for the partners.
        generator: Gives the random numbers.
        alpha: As in `mixed`.
        probability: As in `mixed`.
        majority: As in `mixed`.

    Returns:
        The mixtures, and the share of each first example, float32 `(batch,)`.

    Raises:
        ValueError: for what cannot be mixed.
    """
    size = len(keras.tree.flatten(first)[0])
    shares = generator.beta(alpha, alpha, size)
    if majority:
        shares = np.maximum(shares, 1 - shares)
    shares = np.where(generator.random(size) < probability, shares, 1.0)
    if how == "mixup":
        mixtures = keras.tree.map_structure(lambda a, b: _blend(a, b, shares), first, second)
        return mixtures, shares.astype(np.float32)
    return _paste(first, second, shares, generator)


def soft_labels(first: np.ndarray, second: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Returns the labels of mixtures, float32 `(batch, num_classes)`.

    Args:
        first: One-hot labels, `(batch, num_classes)`.
        second: Those of the partners.
        shares: Share of each first example, `(batch,)`.
    """
    shares = np.asarray(shares, np.float32)[:, None]
    return shares * first + (1 - shares) * second


def one_hot(labels: Any, num_classes: int) -> np.ndarray:
    """Returns labels as one-hot rows, float32 `(batch, num_classes)`; rows stay as they are."""
    labels = np.asarray(labels)
    if labels.ndim < 2 or labels.shape[1] == 1:
        labels = keras.utils.to_categorical(labels.reshape(-1), num_classes)
    return labels.astype(np.float32)


def check_mixture(how: Any, alpha: Any) -> None:
    """Raises `ValueError` for an unknown mixture, or an `alpha` out of range."""
    if how not in MIXTURES:
        raise ValueError(f"`how` must be one of {', '.join(MIXTURES)}. Received: how={how!r}")
    class_counts.check_range("alpha", alpha, 0, 100, open_low=True)


def _blend(first: Any, second: Any, shares: np.ndarray) -> np.ndarray:
    first, second = np.asarray(first), np.asarray(second)
    if first.dtype != np.uint8 and first.dtype.kind != "f":
        raise ValueError(
            "`mixup` needs pixels in uint8 or floats, which can be averaged. Received: "
            f"{first.dtype}"
        )
    weights = shares.astype(np.float32).reshape(-1, *[1] * (first.ndim - 1))
    blended = weights * first + (1 - weights) * second
    return (np.rint(blended) if first.dtype == np.uint8 else blended).astype(first.dtype)


def _paste(
    first: Any, second: Any, shares: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    if np.ndim(first) != 4:
        raise ValueError(
            "`cutmix` needs images of shape `(batch, height, width, channels)`. Received: shape "
            f"{np.shape(first)}"
        )
    height, width = np.shape(first)[1:3]
    inside = []
    for side in (height, width):
        length = np.rint(side * np.sqrt(1 - shares))
        start = np.floor(generator.random(len(shares)) * side - length / 2 + 0.5)
        at = np.arange(side)
        inside.append((at >= start[:, None]) & (at < (start + length)[:, None]))
    rows, columns = inside
    pasted = rows.sum(1) * columns.sum(1) / (height * width)
    mask = rows[:, :, None, None] & columns[:, None, :, None]
    return np.where(mask, second, first), (1 - pasted).astype(np.float32)
