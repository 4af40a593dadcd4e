"""Balanced draws from examples in many files."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_ldam import counts as class_counts
from keras_ldam.sampling.draws import check_held, class_chances
from keras_ldam.sampling.sources import readers

_PART = 2**16
"""So many labels are sorted at a time."""


class BalancedFiles(keras.utils.PyDataset):
    """Batches of balanced draws from examples that lie in many files, by any number of workers.

    Each draw is a class, P(j) ∝ n_j^(1 - power), and then any of its examples. Batch i of an epoch
    depends on seed, epoch and i alone, and needs nothing of the batches before it: there is no
    order of an epoch in memory, only the numbers of the examples sorted by class. They take 4 bytes
    an example, 8 where there are 2**32 or more; labels may be mapped files. Workers that `share`
    the batches read the examples of their own part, and together draw what one alone would.

    Pass `keras_ldam.EpochClock(batches)` to `fit` among its callbacks.

    Args:
        labels: Class of each example, for each file an array of whole numbers `(n,)`, as of
            `numpy.load(path, mmap_mode="r")`.
        read: Function from the number of a file and rows of it, ascending, each once, to their
            inputs: an array, or a structure of arrays, with as many entries.
        counts: Training examples per class n_j, shape `(num_classes,)`; counted by default.
        power: From 0 to 2, as for `balanced`; or a function from the epoch, counted from zero, to
            that number.
        batch_size: Examples in a batch, over all workers.
        seed: Seed of the draws, a whole number of at least 0.
        share: Number of this worker and of all of them. The second must divide `batch_size`.
        **kwargs: `workers`, `use_multiprocessing` and `max_queue_size` of `keras.utils.PyDataset`.
            On JAX and torch Keras' workers would mix the batches of different epochs: one reads.

    Raises:
        ValueError: for an argument out of range, labels that are no whole numbers, and a class
            without an example.

    Example:

    >>> import numpy as np
    >>> inputs = [np.arange(900.0), np.arange(100.0)]
    >>> labels = [np.zeros(900, "int32"), np.ones(100, "int32")]
    >>> batches = BalancedFiles(labels, lambda file, rows: inputs[file][rows], batch_size=50)
    >>> x, y = batches[0]
    >>> len(batches), x.shape, np.bincount(y).tolist()
    (20, (50,), [21, 29])
    """

    epoch: int
    """Epoch whose batches are given, from zero."""

    def __init__(
        self,
        labels: Sequence[np.ndarray],
        read: Callable[[int, np.ndarray], Any],
        counts: Sequence[int] | Mapping[Any, int] | np.ndarray | None = None,
        *,
        power: float | Callable[[int], float] = 1.0,
        batch_size: int = 32,
        seed: int = 0,
        share: tuple[int, int] = (0, 1),
        **kwargs: Any,
    ):
        super().__init__(**readers(**kwargs))
        class_counts.check_whole("seed", seed, 0)
        class_counts.check_whole("batch_size", batch_size, 1)
        if not callable(power):
            class_counts.check_range("power", power, 0, 2)
        whole = isinstance(share, (tuple, list)) and len(share) == 2
        if whole:
            whole = all(isinstance(part, numbers.Integral) for part in share)
        if not whole or not 0 <= share[0] < share[1] or batch_size % share[1]:
            raise ValueError(
                "`share` must be the number of a worker, from 0, and how many there are, a divisor "
                f"of `batch_size`. Received: share={class_counts.shown(share)}, "
                f"batch_size={batch_size}"
            )
        if not callable(read):
            raise ValueError(f"`read` must be a function. Received: {class_counts.shown(read)}")
        self._labels, self._read = _of_files(labels), read
        self.power, self.seed, self.batch_size, self.epoch = power, int(seed), int(batch_size), 0
        own = self.batch_size // share[1]
        self._own = slice(share[0] * own, (share[0] + 1) * own)
        sizes = [len(part) for part in self._labels]
        if not sum(sizes):
            raise ValueError("`labels` must hold examples. Received: none")
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        held = self._count()
        check_held(held)
        self.counts = held if counts is None else class_counts.check_counts(counts)
        if len(self.counts) != len(held):
            raise ValueError(
                f"`counts` must have one entry for each of the {len(held)} classes of `labels`. "
                f"Received: {len(self.counts)}"
            )
        self._first = np.concatenate([[0], np.cumsum(held)])
        self._by_class = self._sorted()
        self._chances: tuple[int, np.ndarray] | None = None

    def _parts(self) -> Iterator[tuple[int, np.ndarray]]:
        """Labels, not too many at a time, each part with the number of its first example."""
        for start, labels in zip(self._starts, self._labels, strict=False):
            for row in range(0, len(labels), _PART):
                part = np.asarray(labels[row : row + _PART])
                if part.dtype.kind not in "iu" or part.ndim != 1 or part.min() < 0:
                    raise ValueError(
                        "`labels` must hold arrays of whole numbers of at least 0, one for each "
                        f"example. Received: {part.dtype} of shape {part.shape}"
                        + (f", {part.min()} among them" if part.dtype.kind == "i" else "")
                    )
                yield int(start) + row, part

    def _count(self) -> np.ndarray:
        held = np.zeros(0, "int64")
        for _, part in self._parts():
            classes, times = np.unique(part, return_counts=True)
            if classes[-1] >= self._starts[-1]:  # And memory may not do for so many classes.
                raise ValueError(
                    "`labels` must have an example of each class. Received: class "
                    f"{classes[-1]} among {self._starts[-1]} examples"
                )
            if classes[-1] >= len(held):
                held = np.concatenate([held, np.zeros(int(classes[-1]) + 1 - len(held), "int64")])
            held[classes] += times
        return held

    def _sorted(self) -> np.ndarray:
        """The numbers of all examples, those of a class side by side, in their order."""
        size = int(self._starts[-1])
        numbers = np.empty(size, "uint32" if size < 2**32 else "int64")
        filled = self._first[:-1].copy()
        for start, part in self._parts():
            order = np.argsort(part, kind="stable")
            classes, first, times = np.unique(part[order], return_index=True, return_counts=True)
            within = np.arange(len(part)) - np.repeat(first, times)
            numbers[np.repeat(filled[classes], times) + within] = order + start
            filled[classes] += times
        return numbers

    def draw(self, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the examples of a whole batch: their numbers, over all files, and classes."""
        chances = self._chances
        if chances is None or chances[0] != epoch:
            power = self.power(epoch) if callable(self.power) else self.power
            chances = self._chances = epoch, np.cumsum(class_chances(self.counts, power))
        generator = np.random.default_rng([self.seed, epoch, index])
        which, where = generator.random((2, self.batch_size))
        ends = chances[1]
        classes = np.searchsorted(ends, which * ends[-1], side="right")
        classes = np.minimum(classes, len(ends) - 1)
        held = self._first[classes + 1] - self._first[classes]
        places = self._first[classes] + np.minimum((where * held).astype("int64"), held - 1)
        return self._by_class[places].astype("int64"), classes

    def __len__(self) -> int:
        return int(-(-self._starts[-1] // self.batch_size))

    def __getitem__(self, index: int) -> Any:
        numbers, classes = (part[self._own] for part in self.draw(self.epoch, index))
        # Each example is read once, file by file.
        single, back = np.unique(numbers, return_inverse=True)
        files = np.searchsorted(self._starts, single, side="right") - 1
        read = [
            self._rows(int(file), single[files == file] - self._starts[file])
            for file in np.unique(files)
        ]
        try:
            x = keras.tree.map_structure(lambda *parts: np.concatenate(parts)[back], *read)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "`read` must return arrays of one structure, and of one shape but for the first "
                f"axis, for all files. Received: {str(error)[:200]}"
            ) from None
        return x, classes

    def _rows(self, file: int, rows: np.ndarray) -> Any:
        read = self._read(file, rows)
        shapes = [np.shape(leaf) for leaf in keras.tree.flatten(read)]
        wrong = [shape for shape in shapes if shape[:1] != rows.shape]
        if wrong or not shapes:  # Labels would be of other examples.
            raise ValueError(
                "`read` must return arrays with an entry for each row that it is asked for. "
                f"Received: {f'shape {wrong[0]}' if wrong else 'none'} for {len(rows)} rows of "
                f"file {file}"
            )
        return read

    def on_epoch_end(self) -> None:
        """Goes on to the next epoch; an `EpochClock` says which that is."""
        self.epoch += 1


def _of_files(labels: Any) -> list[Any]:
    try:
        parts = list(labels)
    except TypeError:
        parts = [labels]
    if any(np.ndim(part) != 1 for part in parts):
        raise ValueError(
            "`labels` must be a list with an array of whole numbers for each file. Received: "
            f"{class_counts.shown(labels)}"
        )
    return parts
