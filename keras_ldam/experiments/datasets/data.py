"""The record that every dataset yields: what a run needs to know of its data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Sequences of whole numbers of different lengths, kept end to end.

    Args:
        values: All sequences one after the other, int32 `[total]`.
        lengths: Length of each, int64 `[n]`.
        multiple: Batches are padded to a multiple of this length. More than 1 where each new shape
            is compiled anew.
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

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """The sequences at `indices` as int32 `[len(indices), length]`, zeros at their ends.

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
class Split:
    """Examples with labels.

    Args:
        examples: What is indexed with an array of whole numbers: an array `[n, …]`, a `Ragged`,
            or an array of file names.
        labels: Class of each example, int32 `[n]`.
        load: For examples that are read from disk as they are needed: turns one element of
            `examples`, and random numbers for training, into an image, in TensorFlow's graph; see
            `images.Loader`. None: elements are fed as they are.
    """

    examples: Any
    labels: np.ndarray
    load: Callable | None = None

    def __len__(self):
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Split:
        """The examples at `indices`, in that order."""
        examples = self.examples
        if isinstance(examples, Ragged):
            ends = np.cumsum(examples.lengths)
            sequences = [examples.values[ends[i] - examples.lengths[i] : ends[i]] for i in indices]
            examples = Ragged.from_sequences(sequences, examples.multiple)
        else:
            examples = examples[indices]
        return dataclasses.replace(self, examples=examples, labels=self.labels[indices])


@dataclasses.dataclass(frozen=True)
class Data:
    """A dataset, ready for training.

    Args:
        name: Its name.
        class_names: Name of each class, in class order.
        train: The training examples that were kept.
        test: The examples that results are reported on; never touched by imbalance.
        test_name: `"test"`, or `"validation"` where a part of the training examples stands in.
        counts: Training examples per class, counted in `train`.
        vocabulary: For text: the known words; word i has id i + 2 (0 pads, 1 is unknown).
        skipped: What was left out because it could not be read, by its path in the dataset.

    Raises:
        ValueError: for a label outside the classes, or a class without a training example.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    test: Split
    test_name: str = "test"
    vocabulary: tuple[str, ...] | None = None
    skipped: tuple[str, ...] = ()
    counts: np.ndarray = dataclasses.field(init=False)

    def __post_init__(self):
        num_classes = len(self.class_names)
        for split, labels in (("training", self.train.labels), (self.test_name, self.test.labels)):
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

    def describe(self) -> dict:
        """What a run keeps of its data, as JSON can hold it."""
        return {
            "name": self.name,
            "class_names": list(self.class_names),
            "counts": self.counts.tolist(),
            "vocabulary": None if self.vocabulary is None else list(self.vocabulary),
            "skipped": list(self.skipped),
        }
