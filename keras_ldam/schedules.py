"""Learning rates as pure functions of the epoch."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping

import keras

from keras_ldam import counts as class_counts


def stepwise(
    learning_rate: float,
    *,
    warmup_epochs: int = 0,
    warmup_start: float | None = None,
    drops: Mapping[int, float] | None = None,
) -> Callable[[int], float]:
    """Makes a schedule that warms up in steps and then drops at given epochs.

    With e the epoch, counted from zero:

    - during warm-up (e < `warmup_epochs`) the rate is
      `learning_rate * (e + 1) / warmup_epochs`, or, with `warmup_start` s,
      `learning_rate * (s + (1 - s) * e / warmup_epochs)`,
    - afterwards it is `learning_rate` times the product of the factors of all drops
      whose epoch is at most e. Factors are cumulative: `{160: 0.01, 180: 0.01}` ends at
      `1e-4 * learning_rate`.

    The result depends on the epoch alone, so a resumed run continues with the right rate.

    Args:
        learning_rate: Peak learning rate, above 0.
        warmup_epochs: Number of warm-up epochs, 0 or more. The rate is constant within an
            epoch. Defaults to 0, no warm-up.
        warmup_start: Share of the rate in the first epoch, above 0 and at most 1, from which it
            climbs to the whole rate in the first epoch after the warm-up. By default it climbs
            from `1 / warmup_epochs` to the whole rate in the last epoch of the warm-up.
        drops: Mapping from the first epoch, counted from zero, at which a factor applies to
            that factor, above 0. Every epoch must come after the warm-up. Defaults to no
            drops.

    Returns:
        A function from the epoch to the learning rate, as
        `keras.callbacks.LearningRateScheduler` takes it.

    Raises:
        ValueError: If an argument is out of the ranges above.

    Example:

    >>> rate = stepwise(0.1, warmup_epochs=5, drops={160: 0.01, 180: 0.01})
    >>> [round(rate(epoch), 9) for epoch in (0, 4, 5, 159, 160, 180)]
    [0.02, 0.1, 0.1, 0.1, 0.001, 1e-05]

    References:

    - [Cao et al., 2019](https://arxiv.org/abs/1906.07413), appendix B: the CIFAR recipe is
      the example above.
    """
    class_counts.check_range("learning_rate", learning_rate, 0, math.inf, open_low=True)
    class_counts.check_whole("warmup_epochs", warmup_epochs, 0)
    if warmup_start is not None:
        class_counts.check_range("warmup_start", warmup_start, 0, 1, open_low=True)
    learning_rate = float(learning_rate)  # Keras refuses whole numbers.
    drops = {} if drops is None else drops
    if not isinstance(drops, Mapping):
        received = class_counts.shown(drops)
        raise ValueError(f"`drops` must be a mapping from epochs to factors. Received: {received}")
    for epoch, factor in drops.items():
        if not isinstance(epoch, numbers.Real) or epoch % 1 or epoch < warmup_epochs:
            raise ValueError(
                "`drops` must have whole epochs for keys, from `warmup_epochs` = "
                f"{warmup_epochs} on. Received: {class_counts.shown(epoch)}"
            )
        class_counts.check_range(f"drops[{epoch}]", factor, 0, math.inf, open_low=True)
    factors = sorted(drops.items())

    def learning_rate_at(epoch: int, *_: float) -> float:
        """Returns the rate of `epoch`; Keras also passes the current rate, which is ignored."""
        if epoch < warmup_epochs and warmup_start is not None:
            return learning_rate * (warmup_start + (1 - warmup_start) * epoch / warmup_epochs)
        if epoch < warmup_epochs:
            return learning_rate * (epoch + 1) / warmup_epochs
        rate = learning_rate
        for start, factor in factors:
            if epoch >= start:
                rate *= factor
        return rate

    return learning_rate_at


def cosine(learning_rate: float, *, epochs: int, warmup_epochs: int = 0) -> Callable[[int], float]:
    """Makes a schedule that warms up in steps and then falls by half a cosine towards 0.

    With e the epoch, counted from zero, and W warm-up epochs, the rate is
    `learning_rate * (e + 1) / W` for e < W, and from then on that of
    `keras.optimizers.schedules.CosineDecay` over the other epochs,
    `learning_rate * (1 + cos(π (e - W) / (epochs - W))) / 2`. It is constant within an epoch and
    depends on the epoch alone, so a resumed run continues with the right rate, and `DRW` sees what
    it is.

    Args:
        learning_rate: Peak learning rate, above 0.
        epochs: Number of all epochs, above `warmup_epochs`.
        warmup_epochs: Number of warm-up epochs, 0 or more. Defaults to 0, no warm-up.

    Returns:
        A function from the epoch to the learning rate, as
        `keras.callbacks.LearningRateScheduler` takes it.

    Raises:
        ValueError: If an argument is out of the ranges above.

    Example:

    >>> rate = cosine(0.1, epochs=10, warmup_epochs=2)
    >>> [round(rate(epoch), 4) for epoch in (0, 1, 2, 6, 9)]
    [0.05, 0.1, 0.1, 0.05, 0.0038]

    References:

    - [Loshchilov and Hutter, 2017](https://arxiv.org/abs/1608.03983), without restarts
    """
    warmup = stepwise(learning_rate, warmup_epochs=warmup_epochs)
    class_counts.check_whole("epochs", epochs, 1)
    if epochs <= warmup_epochs:
        raise ValueError(
            f"`epochs` must be above `warmup_epochs` = {warmup_epochs}. Received: epochs={epochs}"
        )
    decay = keras.optimizers.schedules.CosineDecay(float(learning_rate), epochs - warmup_epochs)

    def learning_rate_at(epoch: int, *_: float) -> float:
        """Returns the rate of `epoch`; Keras also passes the current rate, which is ignored."""
        return warmup(epoch) if epoch < warmup_epochs else float(decay(epoch - warmup_epochs))

    return learning_rate_at
