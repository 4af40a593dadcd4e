"""The record that every dataset yields: what a run needs to know of its data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

STREAMED_BATCH = 100
"""Largest batch of images that are read from disk: they are larger than those in memory."""


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Sequences of whole numbers of different lengths, one after the other.

    Args:
        values: All sequences, int32, shape `(total,)`.
        lengths: Length of each, int64, shape `(n,)`.
        multiple: Batches are padded to a multiple of this length. Above 1 where each new shape is
            compiled anew.
    """

    values: np.ndarray
    lengths: np.ndarray
    multiple: int = 1

    @classmethod
    def from_sequences(cls, sequences: Sequence[np.ndarray], multiple: int = 1) -> Ragged:
        """Builds it from a list of vectors."""
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        values = np.concatenate(sequences) if len(sequences) else np.zeros(0)
        return cls(values.astype(np.int32), lengths, multiple)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """The sequences at `indices`, int32, shape `(batch, length)`, with zeros at their ends.

        The length is that of the longest, at least 1, rounded up to `multiple`.
        """
        starts = np.cumsum(self.lengths) - self.lengths
        lengths = self.lengths[indices]
        multiples = -(-max(1, int(lengths.max(initial=0))) // self.multiple)
        batch = np.zeros((len(indices), multiples * self.multiple), dtype=np.int32)
        for row, (start, length) in enumerate(zip(starts[indices], lengths, strict=True)):
            batch[row, :length] = self.values[start : start + length]
        return batch


@dataclasses.dataclass(frozen=True)
class OnDisk:
    """Rows of an array that may be larger than the memory: read from a file as they are needed.

    Args:
        values: All rows, `(total, features)`, as `numpy.memmap`.
        indices: Which of them, shape `(n,)`.
    """

    values: np.ndarray
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """The rows at `indices`, in memory."""
        return np.array(self.values[self.indices[indices]])


_LARGEST_LABEL = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples with labels.

    Args:
        examples: An array, shape `(n, …)`: images uint8 `(n, height, width, channels)`, vectors
            `(n, features)`, or the names of files that `load` reads. Or sequences, a `Ragged`; or
            vectors on the disk, an `OnDisk`.
        labels: Class of each example, whole numbers from 0, shape `(n,)`.
        load: For images that are read from disk as they are needed: turns one element of
            `examples`, and random numbers for training, into an image, in TensorFlow's graph; see
            `images.Loader`. None: examples are fed as they are.

    Raises:
        ValueError: if the labels are not whole numbers, one for each example.
    """

    examples: Any
    labels: np.ndarray
    load: Callable | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.examples, (Ragged, OnDisk)):
            object.__setattr__(self, "examples", np.asarray(self.examples))
        labels = np.asarray(self.labels)
        if labels.dtype.kind not in "iu" or labels.shape != (len(self.examples),):
            raise ValueError(
                "`labels` must be the class of each example, as whole numbers from 0, shape "
                f"`({len(self.examples)},)`. Received: labels of type {labels.dtype}, shape "
                f"{labels.shape}"
            )
        if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) <= _LARGEST_LABEL:
            raise ValueError(
                f"`labels` must be from 0 to {_LARGEST_LABEL}. Received: {labels.min()} to "
                f"{labels.max()}"
            )
        object.__setattr__(self, "labels", labels.astype(np.int32, copy=False))

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Split:
        """The examples at `indices`, in that order."""
        examples = self.examples
        if isinstance(examples, Ragged):
            ends = np.cumsum(examples.lengths)
            sequences = [examples.values[ends[i] - examples.lengths[i] : ends[i]] for i in indices]
            examples = Ragged.from_sequences(sequences, examples.multiple)
        elif isinstance(examples, OnDisk):
            examples = OnDisk(examples.values, examples.indices[indices])
        else:
            examples = examples[indices]
        return dataclasses.replace(self, examples=examples, labels=self.labels[indices])

    def batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields each example once, in batches of examples and labels.

        Sequences come from the shortest to the longest, so that little is padded; all else in its
        order.

        Args:
            batch_size: Examples in a batch; of images that are read from disk `STREAMED_BATCH` at
                most.

        Raises:
            ValueError: if an image cannot be read, naming it.
        """
        if self.load is not None:
            from keras_ldam.experiments.datasets import images

            yield from images.stream_once(self, min(batch_size, STREAMED_BATCH))
            return
        order = np.arange(len(self))
        if isinstance(self.examples, Ragged):
            order = np.argsort(self.examples.lengths, kind="stable")
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            yield self.examples[indices], self.labels[indices]


@dataclasses.dataclass(frozen=True)
class Data:
    """A dataset, ready for training.

    Args:
        name: Its name.
        class_names: Name of each class, in class order.
        train: The training examples that are kept.
        test: The examples that results are reported on; never touched by imbalance.
        test_name: `"test"`, or `"validation"` where a part of the training examples stands in.
        vocabulary: For texts: the known words; word i has id i + 2 (0 pads, 1 is unknown).
        skipped: What was left out because it could not be read, by its path in the dataset.
        columns: For tables: what each column of a row is, see `row_encoder`.
        fingerprint: A number for the files of a user's own, as text: for their contents, or for the
            names of images.

    Attributes:
        counts: Training examples per class, counted in `train`, shape `(num_classes,)`.

    Raises:
        ValueError: if a label is outside the classes, a class has no training example, the test
            split is empty, or the names of the classes are not different texts.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    test: Split
    test_name: str = "test"
    vocabulary: tuple[str, ...] | None = None
    skipped: tuple[str, ...] = ()
    columns: tuple[dict[str, Any], ...] | None = None
    fingerprint: str = ""
    counts: np.ndarray = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", self._checked_names())
        num_classes = len(self.class_names)
        for split, labels in (("training", self.train.labels), (self.test_name, self.test.labels)):
            if not len(labels):
                raise ValueError(f"{self.name} has no {split} example.")
            outside = (labels < 0) | (labels >= num_classes)
            if outside.any():
                at = int(np.flatnonzero(outside)[0])
                raise ValueError(
                    f"{self.name}: {split} example {at} has label {labels[at]}, outside 0 … "
                    f"{num_classes - 1}."
                )
        counts = np.bincount(self.train.labels, minlength=num_classes)
        if counts.min() < 1:
            empty = int(np.argmin(counts))
            raise ValueError(
                f"{self.name}: class {empty} ({self.class_names[empty]}) has no training example."
            )
        object.__setattr__(self, "counts", counts)

    def _checked_names(self):
        names = tuple(map(str, self.class_names))
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{self.name}: two classes have the name {twice!r}.")
        for name in names:
            try:
                name.encode()
            except UnicodeEncodeError:
                raise ValueError(f"{self.name}: class name {name!r} is not UTF-8.") from None
        if len(names) < 2:
            raise ValueError(f"{self.name} has {len(names)} classes; at least two are needed.")
        return names

    def describe(self) -> dict[str, Any]:
        """What a run keeps of its data, as JSON can hold it."""
        told = {
            "name": self.name,
            "class_names": list(self.class_names),
            "counts": self.counts.tolist(),
            "vocabulary": None if self.vocabulary is None else list(self.vocabulary),
            "skipped": list(self.skipped),
        }
        if self.columns is not None:
            told["columns"] = [dict(column) for column in self.columns]
        if self.fingerprint:
            told["fingerprint"] = self.fingerprint
        return told
