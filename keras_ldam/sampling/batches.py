"""Balanced draws from any form of data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_ldam import counts as class_counts
from keras_ldam import keras_internals
from keras_ldam.labels import check_labels
from keras_ldam.sampling.draws import check_held, class_chances, tell
from keras_ldam.sampling.sources import Arrays, Stored
from keras_ldam.sampling.streams import balanced_dataset


def balanced(
    data: Any,
    counts: Sequence[int] | Mapping[Any, int] | np.ndarray | None = None,
    *,
    power: float | Callable[[int], float] = 1.0,
    batch_size: int | None = None,
    seed: int = 0,
    labels: Any = None,
    buffer: int = 1024,
    initial_epoch: int = 0,
    verbose: int = 1,
) -> Any:
    """Draws training examples so that class j comes with P(j) ∝ n_j^(1 - power).

    `power=1` draws all classes equally often (re-sampling, RS), `power=0` as often as they are,
    `power=0.5` by the square roots of their counts, and `power=2` in reversed frequencies, the
    rarest class most often. An epoch has as many examples as the data. What is drawn depends on
    `seed` and the epoch alone, and a line tells how often each class is drawn.

    - **Arrays** `(x, y)` or `(x, y, sample_weight)`: examples are drawn with replacement, each
      independently, and come as a `BalancedBatches`, a `keras.utils.PyDataset`. `power=0` is each
      example once, shuffled, and so is any power where all classes are equally frequent.
    - **A `keras.utils.PyDataset`**: also a `BalancedBatches`. Its batches are read in shuffled
      order, about once each with `fit(shuffle=False)`; an example of class j comes
      r_j = N P(j) / n_j times on average, rounded down or up at random, N of all classes together.
      Draws are mixed within a window of `buffer` examples, which is held in memory. Batches are
      read by as many threads as the dataset has `workers`. They must stay the same from epoch to
      epoch, so its `on_epoch_end` is not called.
    - **A `tf.data.Dataset`** of single examples, before `batch`: a `tf.data.Dataset` of single
      examples. One pass over the data makes an epoch: each example is repeated r_j times on
      average, as above, and a shuffle buffer of `buffer` examples separates the repetitions.
      Examples mix only as far as the buffer reaches: shuffle the files before. Apply `balanced`
      before images are decoded and augmented: it repeats what it gets, and the buffer then holds
      files, not pixels. On several machines each makes the same draws and keeps its share of them,
      so each reads all of the data.

    Balanced draws and class weights in the loss correct the same imbalance: use one of the two.

    Args:
        data: Training examples with labels, in a form above. Labels are whole numbers, `(n,)` or
            `(n, 1)`, or one-hot, `(n, num_classes)`.
        counts: Training examples per class n_j, shape `(num_classes,)`. By default they are
            counted; of a `tf.data.Dataset` that takes one more pass, and those given must be the
            dataset's own.
        power: From 0 to 2; or a function from the epoch, counted from zero, to that number.
        batch_size: Examples in a batch. Defaults to 32 for arrays, and to that of a `PyDataset`. A
            `tf.data.Dataset` has none.
        seed: Seed of the draws, a whole number of at least 0.
        labels: Class of each example, `(n,)` or one-hot, where `y` is something else; or to avoid
            reading all of a `PyDataset` for them. For a `tf.data.Dataset` a function from the parts
            of an element to its label: `lambda x, y: y["species"]`.
        buffer: Number of examples among which those of a dataset are mixed, at least 1.
        initial_epoch: First epoch, counted from zero. Each pass over the data draws the next
            epoch. Keras may make one more pass, to build a model, so tell a `BalancedBatches` the
            epoch by a `keras_ldam.EpochClock`.
        verbose: 1 to print the line, 0 for silence.

    Returns:
        A `BalancedBatches`; for a `tf.data.Dataset` another one.

    Raises:
        ValueError: for an argument out of range, data without labels, a class without an example,
            or batches in place of single examples.

    Example:

    >>> import numpy as np
    >>> x, y = np.arange(1000.0), np.repeat([0, 1], [900, 100])
    >>> batches = keras_ldam.balanced((x, y), batch_size=50, verbose=0)
    >>> len(batches), batches.class_counts(epoch=0).tolist()
    (20, [473, 527])

    References:
        Kang et al., 2020, "Decoupling Representation and Classifier for Long-Tailed Recognition",
        section 3; Mahajan et al., 2018, "Exploring the Limits of Weakly Supervised Pretraining",
        for square roots.
    """
    class_counts.check_whole("seed", seed, 0)
    class_counts.check_whole("buffer", buffer, 1)
    class_counts.check_whole("initial_epoch", initial_epoch, 0)
    if batch_size is not None:
        class_counts.check_whole("batch_size", batch_size, 1)
    seed, buffer, initial_epoch = int(seed), int(buffer), int(initial_epoch)
    if not callable(power):
        class_counts.check_range("power", power, 0, 2)
    if counts is not None:
        counts = class_counts.check_counts(counts)
    if hasattr(data, "element_spec"):
        if batch_size is not None:
            raise ValueError(
                "A `tf.data.Dataset` is drawn by single examples; batch the result. Received: "
                f"batch_size={batch_size}"
            )
        return balanced_dataset(data, counts, power, seed, labels, buffer, initial_epoch, verbose)
    source: Arrays | Stored
    if isinstance(data, keras.utils.PyDataset):
        source = Stored(data, labels, buffer)
    else:
        source = Arrays(data, labels)
    batches = BalancedBatches(source, counts, power=power, batch_size=batch_size, seed=seed)
    batches.epoch = initial_epoch
    if verbose:
        batches.tell()
    return batches


class BalancedBatches(keras.utils.PyDataset):
    """Batches of balanced draws, which `balanced` makes of arrays and of a `PyDataset`.

    Batch i of an epoch depends on seed, epoch and i alone: threads, processes and machines that ask
    for it get the same examples.

    Pass `keras_ldam.EpochClock(batches)` to `fit` among its callbacks, so that a resumed run gets
    the draws of its epoch. Without it the batches count passes over the data, and Keras may make
    one more, to build a model. `fit` permutes the batches of an epoch once more, by Python's
    random state; `shuffle=False` keeps their order.
    """

    epoch: int
    """Epoch whose batches are given, from zero."""

    def __init__(
        self,
        source: Arrays | Stored,
        counts: np.ndarray | None,
        *,
        power: float | Callable[[int], float],
        batch_size: int | None,
        seed: int,
    ):
        super().__init__()
        self.labels, self._source = source.labels, source
        self.power, self.seed = power, seed
        self.batch_size = int(batch_size or source.batch_size)
        num_classes = source.num_classes if counts is None else len(counts)
        if counts is not None and source.num_classes > num_classes:
            check_labels(source.labels, num_classes)
            raise ValueError(
                f"`counts` must have one entry for each of the {source.num_classes} classes of the "
                f"one-hot labels. Received: {num_classes}"
            )
        self._held = np.bincount(source.labels, minlength=num_classes)
        check_held(self._held)
        self.counts = class_counts.check_counts(self._held if counts is None else counts)
        self.epoch = 0
        self._planned: tuple[int, np.ndarray] | None = None

    def again(self, *, power: float | Callable[[int], float], seed: int) -> BalancedBatches:
        """Returns other draws of the same examples, whose labels are known already."""
        return BalancedBatches(
            self._source.again(),
            self.counts,
            power=power,
            batch_size=self.batch_size,
            seed=seed,
        )

    def tell(self) -> None:
        """Prints how often each class is drawn in the epoch."""
        tell(self.counts, self.class_counts(self.epoch), f"epoch {self.epoch + 1}")

    def order(self, epoch: int) -> np.ndarray:
        """Returns the indices of an epoch's examples, int64 of shape `(n,)`."""
        power = self.power(epoch) if callable(self.power) else self.power
        weights = class_chances(self.counts, power) / self._held
        if power == 0:  # Each example once, whatever frequencies `counts` have.
            weights = np.ones(len(self.counts))
        return self._source.order(weights, seed=self.seed, epoch=epoch)

    def class_counts(self, epoch: int) -> np.ndarray:
        """Returns how often each class is drawn in an epoch, int64 of shape `(num_classes,)`."""
        return np.bincount(self.labels[self.order(epoch)], minlength=len(self.counts))

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def __getitem__(self, index: int) -> Any:
        planned, epoch = self._planned, self.epoch
        if planned is None or planned[0] != epoch:
            # Threads that get here at the same time make the same order.
            planned = self._planned = epoch, self.order(epoch)
        return self._source.take(planned[1][index * self.batch_size :][: self.batch_size])

    def on_epoch_end(self) -> None:
        """Goes on to the next epoch; an `EpochClock` says which that is."""
        self.epoch += 1


class EpochClock(keras.callbacks.Callback):
    """Tells balanced batches which epoch of `fit` begins.

    With it a run that is resumed, by `fit(initial_epoch=…)` or `BackupAndRestore`, draws what an
    uninterrupted one would have drawn.

    Leave out `steps_per_epoch`: with it, each epoch continues where the last one stopped.

    Args:
        batches: What `balanced`, `mixed` or `augmented` has made of arrays or of a `PyDataset`, or
            a `BalancedFiles`.

    Raises:
        ValueError: for other batches; when training begins, for several workers under a
            `tf.distribute` strategy, which would read batches of one epoch in another.

    Example:

    ```python
    batches = keras_ldam.balanced((x, y), batch_size=128)
    model.fit(batches, epochs=30, callbacks=[keras_ldam.EpochClock(batches)])
    ```
    """

    def __init__(self, batches: Any):
        super().__init__()
        if not hasattr(batches, "epoch"):
            raise ValueError(
                "`batches` must be what `balanced`, `mixed` or `augmented` has made of arrays or "
                f"of a `PyDataset`, or a `BalancedFiles`. Received: {type(batches).__name__}"
            )
        self.batches = batches

    def on_train_begin(self, logs: Any = None) -> None:
        """Warns where an epoch of `fit` is not one of the batches, and checks the workers."""
        steps = (self.params or {}).get("steps")
        whole = getattr(self.batches, "num_batches", None)
        if steps and whole and steps < whole:
            warnings.warn(
                f"`fit` takes {steps} of the {whole} batches of an epoch, and the next epoch "
                "continues where it stopped: leave out `steps_per_epoch`.",
                stacklevel=2,
            )
        workers = getattr(self.batches, "workers", 1)
        if workers > 1 and keras_internals.has_strategy(self.model):
            raise ValueError(
                "`workers` must be 1 for a model made under a `tf.distribute` strategy. Received: "
                f"workers={workers}"
            )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Sets the epoch of the batches."""
        self.batches.epoch = epoch
