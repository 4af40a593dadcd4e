"""Class-balanced draws: which examples an epoch holds, decided by counts, seed and epoch alone."""

from __future__ import annotations

import concurrent.futures
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_ldam import counts as class_counts
from keras_ldam.counting import count
from keras_ldam.labels import check_labels

_PART = 2**16
"""So many labels are sorted at a time."""


def class_chances(
    counts: Sequence[int] | Mapping[Any, int] | np.ndarray, power: float = 1.0
) -> np.ndarray:
    """Returns the probability of each class in balanced draws, P(j) ∝ n_j^(1 - power).

    Args:
        counts: Training examples per class n_j, shape `(num_classes,)`.
        power: From 0 to 2: 0 for the frequencies of the data, 1 for equal ones, 0.5 for those of
            the square roots of the counts, 2 for reversed ones.

    Returns:
        float64 array of shape `(num_classes,)` with sum 1.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> class_chances([900, 100], 0.5).tolist()
    [0.75, 0.25]

    References:
        Kang et al., 2020, "Decoupling Representation and Classifier for Long-Tailed Recognition",
        equation 1, with q = 1 - power; Zhou et al., 2020, "BBN: Bilateral-Branch Network with
        Cumulative Learning for Long-Tailed Visual Recognition", for power 2.
    """
    counts = class_counts.check_counts(counts)
    class_counts.check_range("power", power, 0, 2)
    chances = counts ** (1.0 - power)
    return np.asarray(chances / chances.sum())


def epoch_order(
    labels: np.ndarray, *, seed: int, epoch: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """Returns indices of one epoch's examples, as many as labels.

    Args:
        labels: Class of each example, shape `(n,)`.
        seed: Seed of the draws.
        epoch: Epoch, from zero.
        weights: Weights per class w_j: n draws with replacement, where P(example) ∝ w of its class.
            Defaults to every example once, shuffled.

    Returns:
        int64 array, shape `(n,)`.
    """
    generator = np.random.default_rng([seed, epoch])
    if weights is None:
        return generator.permutation(len(labels))
    chances = np.asarray(weights, dtype=np.float64)[labels]
    return generator.choice(len(labels), size=len(labels), p=chances / chances.sum())


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
      example once, shuffled.
    - **A `keras.utils.PyDataset`**: also a `BalancedBatches`. Its batches are read in shuffled
      order, about once each; an example of class j comes r_j = N P(j) / n_j times on average,
      rounded down or up at random, N of all classes together. Draws are mixed within a window of
      `buffer` examples, which is held in memory. Batches are read by as many threads as the dataset
      has `workers`. They must stay the same from epoch to epoch, so its `on_epoch_end` is not
      called.
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
            counted; of a `tf.data.Dataset` that takes one more pass.
        power: From 0 to 2; or a function from the epoch, counted from zero, to that number.
        batch_size: Examples in a batch. Defaults to 32 for arrays, and to that of a `PyDataset`. A
            `tf.data.Dataset` has none.
        seed: Seed of the draws, a whole number of at least 0.
        labels: Class of each example, `(n,)` or one-hot, where `y` is something else; or to avoid
            reading all of a `PyDataset` for them. For a `tf.data.Dataset` a function from the parts
            of an element to its label: `lambda x, y: y["species"]`.
        buffer: Number of examples among which those of a dataset are mixed, at least 1.
        initial_epoch: Epoch, counted from zero, that is drawn first, of which each pass draws the
            next; before the first one Keras may draw one more, to build a model. A
            `BalancedBatches` is better told the epoch by a `keras_ldam.EpochClock`.
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
        return _balanced_dataset(data, counts, power, seed, labels, buffer, initial_epoch, verbose)
    source: _Arrays | _Stored
    if isinstance(data, keras.utils.PyDataset):
        source = _Stored(data, labels, buffer)
    else:
        source = _Arrays(data, labels)
    batches = BalancedBatches(source, counts, power=power, batch_size=batch_size, seed=seed)
    batches.epoch = initial_epoch
    if verbose:
        _tell(batches.counts, batches.class_counts(initial_epoch), f"epoch {initial_epoch + 1}")
    return batches


class BalancedBatches(keras.utils.PyDataset):
    """Batches of balanced draws, which `balanced` makes of arrays and of a `PyDataset`.

    Batch i of an epoch depends on seed, epoch and i alone: threads, processes and machines that ask
    for it get the same examples.

    Pass `keras_ldam.EpochClock(batches)` to `fit` among its callbacks, so that a resumed run gets
    the draws of its epoch. Without it the batches count their own passes, to one of which Keras may
    look ahead to build a model. `fit` permutes the batches of an epoch once more, by Python's
    random state; `shuffle=False` keeps their order.
    """

    epoch: int
    """Epoch whose batches are given, from zero."""

    def __init__(
        self,
        source: _Arrays | _Stored,
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
        _check_held(self._held)
        self.counts = class_counts.check_counts(self._held if counts is None else counts)
        self.epoch = 0
        self._planned: tuple[int, np.ndarray] | None = None

    def order(self, epoch: int) -> np.ndarray:
        """Returns the indices of an epoch's examples, int64 of shape `(n,)`."""
        power = self.power(epoch) if callable(self.power) else self.power
        weights = class_chances(self.counts, power) / self._held
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
        power: From 0 to 1; or a function from the epoch, counted from zero, to that number.
        batch_size: Examples in a batch, over all workers.
        seed: Seed of the draws, a whole number of at least 0.
        share: Number of this worker and of all of them. The second must divide `batch_size`.
        **kwargs: `workers`, `use_multiprocessing` and `max_queue_size` of `keras.utils.PyDataset`.

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
        super().__init__(**kwargs)
        class_counts.check_whole("seed", seed, 0)
        class_counts.check_whole("batch_size", batch_size, 1)
        if not callable(power):
            class_counts.check_range("power", power, 0, 1)
        number, of = share
        if not 0 <= number < of or batch_size % of:
            raise ValueError(
                "`share` must be the number of a worker, from 0, and how many there are, a divisor "
                f"of `batch_size`. Received: share={share}, batch_size={batch_size}"
            )
        self._labels, self._read = list(labels), read
        self.power, self.seed, self.batch_size, self.epoch = power, int(seed), int(batch_size), 0
        own = batch_size // of
        self._own = slice(number * own, (number + 1) * own)
        sizes = [len(part) for part in self._labels]
        if not sum(sizes):
            raise ValueError("`labels` must hold examples. Received: none")
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        held = self._count()
        _check_held(held)
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
            self._read(int(file), single[files == file] - self._starts[file])
            for file in np.unique(files)
        ]
        x = keras.tree.map_structure(lambda *parts: np.concatenate(parts)[back], *read)
        return x, classes

    def on_epoch_end(self) -> None:
        """Goes on to the next epoch; an `EpochClock` says which that is."""
        self.epoch += 1


class EpochClock(keras.callbacks.Callback):
    """Tells balanced batches which epoch of `fit` begins.

    With it a run that is resumed, by `fit(initial_epoch=…)` or `BackupAndRestore`, draws what an
    uninterrupted one would have drawn.

    Args:
        batches: A `BalancedFiles`, or what `balanced` has made of arrays or of a `PyDataset`.

    Example:

    ```python
    batches = keras_ldam.balanced((x, y), batch_size=128)
    model.fit(batches, epochs=30, callbacks=[keras_ldam.EpochClock(batches)])
    ```
    """

    def __init__(self, batches: Any):
        super().__init__()
        self.batches = batches

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Sets the epoch of the batches."""
        self.batches.epoch = epoch


class _Arrays:
    """Examples that are held in memory."""

    batch_size = 32

    def __init__(self, data: Any, labels: Any):
        self._data, y = _parts(data)
        self._data = tuple(keras.tree.map_structure(np.asarray, part) for part in self._data)
        self.labels, self.num_classes = _classes(y if labels is None else labels)
        for leaf in keras.tree.flatten(self._data):
            if np.shape(leaf)[:1] != self.labels.shape:
                raise ValueError(
                    "`data` must have as many examples as labels. Received: "
                    f"an array of shape {np.shape(leaf)}, and {len(self.labels)} labels"
                )

    def order(self, weights: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
        natural = np.allclose(weights, weights[0], atol=0)  # They may be tiny.
        return epoch_order(
            self.labels, seed=seed, epoch=epoch, weights=None if natural else weights
        )

    def take(self, indices: np.ndarray) -> Any:
        return keras.tree.map_structure(lambda leaf: leaf[indices], self._data)


class _Stored:
    """Examples in the batches of a `PyDataset`, which are read in a window that moves over them."""

    def __init__(self, data: Any, labels: Any, buffer: int):
        self._data = data
        sizes, found = [], []
        if data.num_batches is None:
            raise ValueError("`data` must have an end. Received: a `PyDataset` without `__len__`")
        for index in range(1 if labels is not None else data.num_batches):
            parts, y = _parts(data[index])
            sizes.append(len(keras.tree.flatten(parts[0])[0]))
            found.append(y)
        self.batch_size = sizes[0]
        self._checked = labels is None
        if labels is None:
            if any(keras.tree.is_nested(y) or y is None for y in found):
                _classes(found[0])
            labels = np.concatenate([np.asarray(y) for y in found])
        self.labels, self.num_classes = _classes(labels)
        self._batch_of = np.repeat(np.arange(len(sizes)), sizes)
        if not self._checked:
            self._batch_of = np.arange(len(self.labels)) // self.batch_size
            if self._batch_of[-1] + 1 != data.num_batches:
                raise ValueError(
                    "`labels` must have one entry for each example of `data`. Received: "
                    f"{len(self.labels)} labels, {data.num_batches} batches of {self.batch_size}"
                )
        self._first = np.searchsorted(self._batch_of, np.arange(data.num_batches))
        self._window = max(buffer, self.batch_size)
        self._read: dict[int, list[Any]] = {}

    def order(self, weights: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
        generator = np.random.default_rng([seed, epoch])
        # The examples of the batches, whole batches shuffled.
        order = np.argsort(generator.permutation(len(self._first))[self._batch_of], kind="stable")
        chances = weights[self.labels[order]]
        # Each as often as its share of whole numbers: rounded down or up, and n in all.
        ends = np.cumsum(chances) * (len(order) / chances.sum()) + generator.random()
        ends[-1] = len(order)
        ends = np.minimum(np.floor(ends), len(order)).astype(np.int64)
        order = np.repeat(order, np.diff(ends, prepend=0))
        for start in range(0, len(order), self._window):
            generator.shuffle(order[start : start + self._window])
        return order

    def take(self, indices: np.ndarray) -> Any:
        at = self._batch_of[indices]
        needed = np.unique(at).tolist()
        with concurrent.futures.ThreadPoolExecutor(max(1, self._data.workers)) as pool:
            leaves = dict(zip(needed, pool.map(self._leaves, needed), strict=True))
        rows = indices - self._first[at]
        examples = [
            np.stack([leaves[b][i][row] for b, row in zip(at.tolist(), rows, strict=True)])
            for i in range(len(leaves[needed[0]]))
        ]
        return keras.tree.pack_sequence_as(self._form, examples)

    def _leaves(self, index: int) -> list[Any]:
        leaves = self._read.get(index)
        if leaves is None:
            parts, y = _parts(self._data[index])
            self._form = parts
            if self._checked:
                recorded = self.labels[self._batch_of == index]
                if not np.array_equal(_classes(y)[0], recorded):
                    raise ValueError(
                        "The batches of `data` must stay the same from epoch to epoch. Received: "
                        f"other labels in batch {index} than before"
                    )
            leaves = self._read[index] = [np.asarray(leaf) for leaf in keras.tree.flatten(parts)]
            # The draws of a window come from about as many examples; others are not needed again.
            for old in list(self._read)[: -(2 * self._window // self.batch_size + 2)]:
                self._read.pop(old, None)
        return leaves


def _balanced_dataset(
    dataset: Any,
    counts: np.ndarray | None,
    power: float | Callable[[int], float],
    seed: int,
    label_of: Any,
    buffer: int,
    initial_epoch: int,
    verbose: int,
) -> Any:
    import tensorflow as tf  # Installed, since the dataset is its own.

    if label_of is not None and not callable(label_of):
        raise ValueError(
            "`labels` must be a function of an element's parts for a `tf.data.Dataset`. Received: "
            f"{type(label_of).__name__}"
        )
    tuples = isinstance(dataset.element_spec, tuple)

    def form(parts: tuple[Any, ...]) -> Any:
        """An element, of the arguments that tf.data makes of it."""
        return parts if tuples else parts[0]

    if label_of is None and (not tuples or len(dataset.element_spec) < 2):
        raise ValueError(_NO_LABELS.format(received=f"elements {dataset.element_spec}"))

    def label(element: Any) -> Any:
        if label_of is not None:
            return label_of(*element) if tuples else label_of(element)
        return element[1]

    labels = dataset.map(lambda *parts: label(form(parts)))
    spec = labels.element_spec
    if not isinstance(spec, tf.TensorSpec):
        raise ValueError(_NO_LABELS.format(received=f"labels in a {type(spec).__name__}"))
    if spec.dtype == tf.string:
        raise ValueError("Labels must be whole numbers. Received: strings; number the classes.")
    rank = spec.shape.rank
    one_hot = rank == 1 and spec.shape[0] not in (None, 1)
    if rank != 0 and not (rank == 1 and spec.shape[0] is not None):
        raise ValueError(
            "`data` must hold single examples, with a label that is one number or one-hot: call "
            f"`unbatch()` first. Received: labels {spec}"
        )
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError("`data` must have an end, which is that of an epoch: no `repeat`.")
    if counts is None:
        counts = count(labels.batch(4096), verbose=verbose)
        _check_held(counts)
    elif one_hot and spec.shape[0] != len(counts):
        raise ValueError(
            f"`counts` must have one entry for each of the {spec.shape[0]} classes of the one-hot "
            f"labels. Received: {len(counts)}"
        )
    held, size = counts, int(counts.sum())

    def rates(epoch: int) -> np.ndarray:
        chances = class_chances(held, power(epoch) if callable(power) else power)
        return np.asarray(chances * (size / held))

    epochs = itertools.count(initial_epoch)

    def begin() -> Iterator[tuple[np.ndarray, float, int]]:
        epoch = next(epochs)
        generator = np.random.default_rng([seed, epoch])
        # Off the ends of [0, 1], so that rounding errors do not change the number of draws.
        yield rates(epoch), generator.uniform(1e-3, 1 - 1e-3), int(generator.integers(2**31))

    @tf.autograph.experimental.do_not_convert
    def one_pass(rates: Any, start: Any, seed: Any) -> Any:
        def times(left: Any, element: Any) -> Any:
            own = tf.reshape(label(element), [-1])
            if one_hot:
                single = (tf.reduce_sum(own) == 1) & tf.reduce_all((own == 0) | (own == 1))
                with tf.control_dependencies([tf.debugging.Assert(single, [_ONE_HOT, own])]):
                    own = tf.argmax(own)
            else:
                own = tf.cast(own[0], tf.int64)
            due = left + tf.gather(rates, own)
            return due - tf.floor(due), (tf.cast(tf.floor(due), tf.int64), element)

        def repeat(times: Any, element: Any) -> Any:
            return tf.data.Dataset.from_tensors(element).repeat(times)

        examples = dataset.scan(start, times).flat_map(repeat)
        # Beside a global seed TensorFlow does not take a seed that is a tensor.
        tf.compat.v1.get_default_graph().seed = None
        return examples.shuffle(buffer, seed=seed, reshuffle_each_iteration=False)

    if verbose:
        shown = np.round(rates(initial_epoch) * counts).astype(np.int64)
        _tell(counts, shown, "an epoch", about=True)
    starts = tf.data.Dataset.from_generator(
        begin,
        output_signature=(
            tf.TensorSpec([len(counts)], tf.float64),
            tf.TensorSpec([], tf.float64),
            tf.TensorSpec([], tf.int64),
        ),
    )
    drawn = starts.flat_map(one_pass).apply(tf.data.experimental.assert_cardinality(size))
    # By files, TensorFlow's first choice, the one start could not be shared out.
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return drawn.with_options(options)


_ONE_HOT = (
    "One-hot labels must hold a single 1 in each row: smooth and mix labels after `balanced`, "
    "which draws by class."
)
_NO_LABELS = (
    "`data` must hold labels, as (x, y) or (x, y, sample_weight), or come with `labels=`. "
    "Received: {received}"
)


def _parts(data: Any) -> tuple[tuple[Any, ...], Any]:
    """Returns the parts of data or of a batch, and `y`."""
    parts = tuple(data) if isinstance(data, (tuple, list)) else (data,)
    if not 1 <= len(parts) <= 3:
        raise ValueError(_NO_LABELS.format(received=f"a tuple of length {len(parts)}"))
    if len(parts) > 1 and isinstance(parts[1], list):  # Numbers, which are no structure.
        parts = (parts[0], np.asarray(parts[1]), *parts[2:])
    return parts, parts[1] if len(parts) > 1 else None


def _classes(y: Any) -> tuple[np.ndarray, int]:
    """Returns the class of each example, int64 `(n,)`, and the number of classes."""
    if y is None or isinstance(y, (dict, tuple)):
        received = "none" if y is None else f"labels in a {type(y).__name__}"
        raise ValueError(_NO_LABELS.format(received=received))
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "biuf" or labels.ndim not in (1, 2) or not len(labels):
        raise ValueError(
            "Labels must be whole numbers of shape `(n,)`, or one-hot of shape `(n, num_classes)`. "
            f"Received: {labels.dtype} of shape {labels.shape}"
        )
    if labels.ndim == 2:
        wrong = ~(((labels == 0) | (labels == 1)).all(axis=1) & (labels.sum(axis=1) == 1))
        if wrong.any():
            row = np.array2string(labels[np.argmax(wrong)], threshold=12)
            raise ValueError(f"{_ONE_HOT} Received: {row}")
        return labels.argmax(axis=1), labels.shape[1]
    num_classes = int(labels.max()) + 1 if np.isfinite(labels).all() else 1
    check_labels(labels, num_classes)
    return labels.astype(np.int64), num_classes


def _check_held(held: np.ndarray) -> None:
    """Raises `ValueError` for a class without an example, which cannot be drawn."""
    if not held.all():
        raise ValueError(
            f"`data` must have an example of each of the {len(held)} classes. Received: none of "
            f"class {np.argmin(held)}"
        )


def _tell(counts: np.ndarray, drawn: np.ndarray, when: str, *, about: bool = False) -> None:
    shown = [np.array2string(row, threshold=24, max_line_width=10**6) for row in (counts, drawn)]
    print(
        f"Balanced draws: of {shown[0]} examples per class, {when} draws "
        f"{'about ' if about else ''}{shown[1]}.",
        flush=True,
    )
