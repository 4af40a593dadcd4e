"""Examples that can be read in any order: arrays, and the batches of a `PyDataset`."""

from __future__ import annotations

import concurrent.futures
import copy
import warnings
from typing import Any

import keras
import numpy as np

from keras_ldam.counting import check_ends
from keras_ldam.labels import check_labels
from keras_ldam.sampling.draws import epoch_order

ONE_HOT = (
    "One-hot labels must hold a single 1 in each row: smooth and mix labels after `balanced`, "
    "which draws by class."
)
NO_LABELS = (
    "`data` must hold labels, as (x, y) or (x, y, sample_weight), or come with `labels=`. "
    "Received: {received}"
)


def readers(**kwargs: Any) -> dict[str, Any]:
    """Returns arguments of `keras.utils.PyDataset`, but for several workers on JAX and torch.

    There Keras reads batches to build a model, and its workers go on with those that follow: the
    batches of an epoch are then in part those of another.
    """
    if keras.backend.backend() == "tensorflow":
        return kwargs
    return {**kwargs, "workers": 1, "use_multiprocessing": False}


class Arrays:
    """Examples that are held in memory."""

    batch_size = 32

    def __init__(self, data: Any, labels: Any):
        self._data, y = parts_of(data)
        self._data = tuple(keras.tree.map_structure(np.asarray, part) for part in self._data)
        self.labels, self.num_classes = classes_of(y if labels is None else labels)
        for leaf in keras.tree.flatten(self._data):
            if np.shape(leaf)[:1] != self.labels.shape:
                raise ValueError(
                    "`data` must have as many examples as labels. Received: "
                    f"an array of shape {np.shape(leaf)}, and {len(self.labels)} labels"
                )

    def order(self, weights: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
        """Returns the indices of the examples of an epoch."""
        natural = np.allclose(weights, weights[0], atol=0)  # They may be tiny.
        return epoch_order(
            self.labels, seed=seed, epoch=epoch, weights=None if natural else weights
        )

    def again(self) -> Arrays:
        """Returns the same examples."""
        return self

    def take(self, indices: np.ndarray) -> Any:
        """Returns examples by their indices, as one batch."""
        return keras.tree.map_structure(lambda leaf: leaf[indices], self._data)


class Stored:
    """Examples in the batches of a `PyDataset`, which are read in a window that moves over them."""

    def __init__(self, data: Any, labels: Any, buffer: int):
        self._data = data
        sizes, found = [], []
        check_ends("data", data)
        last = data.num_batches - 1
        for index in range(last + 1) if labels is None else sorted({0, last}):
            parts, y = parts_of(data[index])
            sizes.append(len(keras.tree.flatten(parts[0])[0]))
            found.append(y)
        self.batch_size, self._form = sizes[0], parts
        self._checked = labels is None
        if labels is None:
            if any(keras.tree.is_nested(y) or y is None for y in found):
                classes_of(found[0])
            labels = np.concatenate([np.asarray(y) for y in found])
        self.labels, self.num_classes = classes_of(labels)
        self._batch_of = np.repeat(np.arange(len(sizes)), sizes)
        if not self._checked:
            self._batch_of = np.minimum(np.arange(len(self.labels)) // self.batch_size, last)
            if len(self.labels) != last * self.batch_size + sizes[-1]:
                raise ValueError(
                    "`labels` must have one entry for each example of `data`. Received: "
                    f"{len(self.labels)} labels, {last + 1} batches of {self.batch_size}, the last "
                    f"of {sizes[-1]}"
                )
        # Where each begins, and where the last one ends.
        self._first = np.searchsorted(self._batch_of, np.arange(data.num_batches + 1))
        self._window = max(buffer, self.batch_size)
        self._read: dict[int, list[Any]] = {}
        self._reads, self._warned = 0, False

    def order(self, weights: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
        """Returns the indices of the examples of an epoch."""
        self._reads = 0
        generator = np.random.default_rng([seed, epoch])
        # The examples of the batches, whole batches shuffled.
        order = np.argsort(
            generator.permutation(len(self._first) - 1)[self._batch_of], kind="stable"
        )
        chances = weights[self.labels[order]]
        # Each as often as its share of whole numbers: rounded down or up, and n in all.
        ends = np.cumsum(chances) * (len(order) / chances.sum()) + generator.random()
        ends[-1] = len(order)
        ends = np.minimum(np.floor(ends), len(order)).astype(np.int64)
        order = np.repeat(order, np.diff(ends, prepend=0))
        for start in range(0, len(order), self._window):
            generator.shuffle(order[start : start + self._window])
        return order

    def again(self) -> Stored:
        """Returns the same examples, to be read in a window of their own."""
        other = copy.copy(self)
        other._read, other._reads, other._warned = {}, 0, False
        return other

    def take(self, indices: np.ndarray) -> Any:
        """Returns examples by their indices, as one batch."""
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
            parts, y = parts_of(self._data[index])
            if len(parts) != len(self._form):
                raise ValueError(
                    "`data` must have sample weights in every batch or in none. Received: batches "
                    f"of {len(self._form)} and of {len(parts)} parts"
                )
            recorded = self.labels[self._first[index] : self._first[index + 1]]
            if not self._checked:
                size = len(keras.tree.flatten(parts[0])[0])
                if size != len(recorded):
                    raise ValueError(
                        f"With `labels` all batches of `data` but the last must have "
                        f"{self.batch_size} examples. Received: {size} in batch {index}"
                    )
            elif not np.array_equal(classes_of(y)[0], recorded):
                raise ValueError(
                    "The batches of `data` must stay the same from epoch to epoch. Received: "
                    f"other labels in batch {index} than before"
                )
            leaves = self._read[index] = [np.asarray(leaf) for leaf in keras.tree.flatten(parts)]
            self._reads += 1
            number = len(self._first) - 1
            if self._reads > 3 * number and not self._warned:
                self._warned = True
                warnings.warn(
                    f"The {number} batches of `data` are read more than three times an "
                    "epoch, because the drawn ones are asked for in random order: pass "
                    "`shuffle=False` to `fit`, they are shuffled already.",
                    stacklevel=2,
                )
            # The draws of a window come from about as many examples; others are not needed again.
            for old in list(self._read)[: -(2 * self._window // self.batch_size + 2)]:
                self._read.pop(old, None)
        return leaves


def parts_of(data: Any) -> tuple[tuple[Any, ...], Any]:
    """Returns the parts of data or of a batch, and `y`."""
    parts = tuple(data) if isinstance(data, (tuple, list)) else (data,)
    if not 1 <= len(parts) <= 3:
        raise ValueError(NO_LABELS.format(received=f"a tuple of length {len(parts)}"))
    while len(parts) > 1 and parts[-1] is None:  # No weights, or no labels.
        parts = parts[:-1]
    if len(parts) > 1 and isinstance(parts[1], list):  # Numbers, which are no structure.
        parts = (parts[0], np.asarray(parts[1]), *parts[2:])
    return parts, parts[1] if len(parts) > 1 else None


def classes_of(y: Any) -> tuple[np.ndarray, int]:
    """Returns the class of each example, int64 `(n,)`, and the number of classes."""
    if y is None or isinstance(y, (dict, tuple)):
        received = "none" if y is None else f"labels in a {type(y).__name__}"
        raise ValueError(NO_LABELS.format(received=received))
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
            raise ValueError(f"{ONE_HOT} Received: {row}")
        return labels.argmax(axis=1), labels.shape[1]
    broken = ~np.isfinite(labels)
    if broken.any():
        raise ValueError(
            f"Labels must be whole numbers. Received: {labels[np.argmax(broken)]} for "
            f"{np.count_nonzero(broken)} of {len(labels)} examples; leave these out"
        )
    num_classes = int(labels.max()) + 1
    check_labels(labels, num_classes)
    return labels.astype(np.int64), num_classes
