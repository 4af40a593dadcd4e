"""Drops of the learning rate, whatever lowers it: a schedule, or a callback."""

from __future__ import annotations

import warnings
from typing import Any

import keras

from keras_ldam import keras_internals

FALL = 0.5
"""The rate has dropped when it is at most this share of the highest since the last drop."""


def _inner(optimizer: Any) -> Any:
    """The optimizer inside one that scales losses."""
    return getattr(optimizer, "inner_optimizer", optimizer)


class Drops:
    """Watches the learning rate of an optimizer, epoch by epoch, for drops.

    Args:
        optimizer: The optimizer, at the rate that the model is compiled with.
        drop: Which drop is waited for.
    """

    def __init__(self, optimizer: Any, drop: int):
        self.optimizer, self.drop = _inner(optimizer), drop
        self.schedule = keras_internals.schedule_of(self.optimizer)
        self.compiled = self._current()
        self.highest = 0.0
        self.drops = self.before = self.first = self.steps = 0
        self.last: int | None = None
        self.past: list[float] = []

    def watches(self, optimizer: Any) -> bool:
        """Whether this watches an optimizer."""
        return self.optimizer is _inner(optimizer)

    def has_dropped(self, epoch: int, steps: int | None) -> bool:
        """Whether an epoch is trained after the drop; called in its first step."""
        if self.schedule is not None and steps:
            if self.last is None or epoch <= self.last:
                # Another `fit` with the same optimizer goes on where the schedule was.
                self.past, self.first, self.before = [], 0, self._step() - epoch * steps
                if self.before < 0:
                    warnings.warn(
                        f"Training resumes at epoch {epoch} while the optimizer has made "
                        f"{self._step()} steps: its learning-rate schedule goes on from there.",
                        stacklevel=2,
                    )
            elif steps != self.steps:  # Batches of another size.
                self.past += self._scheduled(self.before, epoch - self.first, self.steps)
                self.first, self.before = epoch, self._step()
            self.last, self.steps = epoch, steps
            rates = self._scheduled(self.before, epoch + 1 - self.first, steps)
            return self._drops_of(self.past + rates) >= self.drop
        resumed = epoch > 0 and self.last != epoch - 1
        if epoch == 0 or resumed:
            self.drops, self.highest = 0, self.compiled if resumed else 0.0
        rate = self._current() if self.schedule is None else self._soon()
        self._look(rate)
        if resumed and self.drops < self.drop:
            found = f"Training resumes at epoch {epoch} at the learning rate {rate:g}, "
            if self.drop > 1:
                found += "from which nobody can tell how often it has dropped before: "
            else:
                found += (
                    "with which the model is compiled, so whether it has dropped before is "
                    "unknown: compile with the initial rate, or "
                )
            warnings.warn(found + "give DRW a `start_epoch`.", stacklevel=2)
        self.last = epoch
        return self.drops >= self.drop

    def never_drops(self, epochs: int | None, steps: int | None) -> bool:
        """Whether a schedule is known to have no such drop."""
        if self.schedule is None or not epochs or not steps:
            return False
        # From the first step of all on: which epoch `fit` begins with is not known here.
        past, start = divmod(self._step(), steps)
        return self._drops_of(self._scheduled(start, past + epochs, steps)) < self.drop

    def _soon(self) -> float:
        """The rate of the next step, for a schedule; see `_scheduled`."""
        assert self.schedule is not None
        return float(self.schedule(self._step() + 1))

    def _scheduled(self, start: int, epochs: int, steps: int) -> list[float]:
        assert self.schedule is not None
        # In the second step of each epoch: at a boundary Keras' PiecewiseConstantDecay still has
        # the rate before it.
        start += steps > 1
        return [float(self.schedule(max(0, start + epoch * steps))) for epoch in range(epochs)]

    def _step(self) -> int:
        # Not `iterations`, which Keras divides by the steps of an accumulation.
        step = next(each for each in self.optimizer.variables if each.name == "iteration")
        return int(keras.ops.convert_to_numpy(step))

    def _drops_of(self, rates: list[float]) -> int:
        self.drops, self.highest = 0, 0.0
        for rate in rates:
            self._look(rate)
        return self.drops

    def _look(self, rate: float) -> None:
        # Rounding: half of 0.1 in float32 may be a little more than half.
        if self.highest > 0 and rate <= FALL * self.highest * (1 + 1e-6):
            self.drops, self.highest = self.drops + 1, rate
        self.highest = max(self.highest, rate)

    def _current(self) -> float:
        return float(keras.ops.convert_to_numpy(self.optimizer.learning_rate))
