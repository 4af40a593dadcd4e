"""Counts of labels, from wherever labels come."""

from __future__ import annotations

import operator
import time
from collections.abc import Iterator, Mapping
from numbers import Number
from typing import Any

import keras
import numpy as np

from keras_ldam.counts import check_whole, shown

_PART = 2**24
"""So many labels are looked at together, so that memory stays flat for a mapped file."""
_MOST_CLASSES = 2**24
_PATIENCE = 3.0
"""Seconds after which a pass shows how far it has come."""


def count(
    labels: Any,
    num_classes: int | None = None,
    *,
    multi_label: bool = False,
    ignore_class: int | None = None,
    verbose: int = 1,
) -> np.ndarray:
    """Counts the labels of each class: the `counts` that losses, metrics and `DRW` take.

    One pass over labels, or over a dataset of examples and labels, of which the examples are
    ignored. Memory is that of a batch. Labels are

    - whole numbers, one per example, or one per pixel or step for dense targets;
    - one-hot rows; a row of zeros has no label;
    - with `multi_label`, rows of zeros and ones, each the answer for one label.

    Args:
        labels: An array, list, tensor or pandas Series of labels, or arrays `(examples, labels)` as
            in `fit`; or a `tf.data.Dataset`, a `keras.utils.PyDataset`, a torch `DataLoader` or any
            other iterable of batches, each `(examples, labels)` or `(examples, labels,
            sample_weight)`, or labels alone. A tuple of two or three arrays is read as examples
            and labels, a list as labels.
        num_classes: K. By default the length of one-hot rows, or one more than the largest label,
            in which a class that does not occur at the end is missing: pass K where that may be.
        multi_label: Whether the last axis of the labels holds separate answers, 0 or 1.
        ignore_class: Value of labels that count nowhere, such as 255 for void pixels or -1 for
            unknown answers.
        verbose: 1 for a progress bar once counting has taken three seconds, 0 for silence.

    Returns:
        int64 array of shape `(num_classes,)`; with `multi_label` of shape `(num_labels, 2)`, for
        each label how many examples lack it and how many have it, `[negatives, positives]`.

    Raises:
        ValueError: for labels that are fractions, negative, beyond `num_classes` or no numbers,
            for batches without labels, an infinite dataset, or rows of zeros and ones that may be
            one-hot or not.

    Example:

    >>> count([0, 0, 2, 0]).tolist()
    [3, 0, 1]
    >>> count([[0, 255], [1, 1]], 2, ignore_class=255).tolist()  # a mask
    [1, 2]
    >>> count([[1, 0], [1, 1], [0, -1]], multi_label=True, ignore_class=-1).tolist()
    [[1, 2], [1, 1]]
    """
    if num_classes is not None:
        check_whole("num_classes", num_classes, 1)
    tally = _Tally(None if num_classes is None else int(num_classes), multi_label, ignore_class)
    steps, batches = _batches(labels)
    start, bar, done = time.monotonic(), None, 0
    for done, batch in enumerate(batches, 1):
        tally.add(batch)
        if verbose and bar is None and time.monotonic() - start > _PATIENCE:
            bar = keras.utils.Progbar(steps, unit_name="batch")
        if bar is not None:
            bar.update(done, finalize=False)
    if bar is not None:
        bar.update(done, finalize=True)
    return tally.counts()


class _Tally:
    """Counts batch by batch; what kind of labels they are is decided by the first."""

    def __init__(self, num_classes: int | None, multi_label: bool, ignore_class: int | None):
        self.num_classes, self.multi_label = num_classes, multi_label
        self.ignore_class = ignore_class
        self.one_hot: bool | None = None
        self.seen = 0
        self.sums: np.ndarray = np.zeros(num_classes or 0, np.int64)
        self.negatives: Any = 0

    def add(self, labels: np.ndarray) -> None:
        """Adds labels of any shape."""
        step = max(1, _PART // max(1, labels[:1].size)) if labels.ndim else 1
        for start in range(0, len(labels) if labels.ndim else 1, step):
            part = labels[start : start + step] if labels.ndim else labels[None]
            if part.size:
                self._add(part)
                self.seen += part.size

    def counts(self) -> np.ndarray:
        """Returns the counts."""
        if not self.seen:
            raise ValueError("There are no labels to count. Received: 0 labels")
        return np.stack([self.negatives, self.sums], axis=-1) if self.multi_label else self.sums

    def _add(self, labels: np.ndarray) -> None:
        if self.one_hot is None and not self.multi_label:
            self.one_hot = self._rows_are_one_hot(labels)
        if self.multi_label:
            self._add_answers(labels)
        elif self.one_hot:
            self._add_rows(labels)
        else:
            self._add_numbers(labels)

    def _add_numbers(self, labels: np.ndarray) -> None:
        values = labels.reshape(-1)
        if self.ignore_class is not None:
            values = values[values != self.ignore_class]
        most = _MOST_CLASSES if self.num_classes is None else self.num_classes
        wrong = values[~((values >= 0) & (values < most) & (values == np.floor(values)))]
        if wrong.size:
            raise ValueError(self._why(wrong[0]))
        found = np.bincount(values.astype(np.int64), minlength=len(self.sums))
        found[: len(self.sums)] += self.sums
        self.sums = found

    def _add_answers(self, labels: np.ndarray) -> None:
        rows = self._rows(labels, "(…, num_labels)")
        known = np.ones(rows.shape, bool)
        if self.ignore_class is not None:
            known = rows != self.ignore_class
        wrong = rows[known & (rows != 0) & (rows != 1)]  # NaN is not equal to anything.
        if wrong.size:
            hint = "" if wrong[0] >= 0 else f"; `ignore_class={wrong[0]:g}` leaves it out"
            if wrong[0] != wrong[0]:
                hint = "; write -1 for unknown answers and pass `ignore_class=-1`"
            raise ValueError(f"Answers must be 0 or 1. Received: {wrong[0]:g}{hint}")
        positives = (rows == 1) & known
        self.sums = self.sums + positives.sum(axis=0)
        self.negatives = self.negatives + (known & ~positives).sum(axis=0)

    def _add_rows(self, labels: np.ndarray) -> None:
        rows = self._rows(labels, "(…, num_classes)")
        wrong = np.flatnonzero(~(((rows == 0) | (rows == 1)).all(axis=1) & (rows.sum(axis=1) <= 1)))
        if wrong.size:
            raise ValueError(
                "One-hot rows must hold a single 1, or zeros only; where an example may have "
                "several labels pass `multi_label=True`. Received: "
                f"{np.array2string(rows[wrong[0]], threshold=12)}"
            )
        # Not a sum in the type of the rows: in float16 it ends at 2048.
        self.sums = self.sums + np.count_nonzero(rows, axis=0)

    def _rows(self, labels: np.ndarray, form: str) -> np.ndarray:
        if labels.ndim < 2 or len(self.sums) not in (0, labels.shape[-1]):
            wanted = form if not len(self.sums) else f"(…, {len(self.sums)})"
            raise ValueError(f"Labels must have shape {wanted}. Received: shape {labels.shape}")
        if not len(self.sums):
            self.sums = np.zeros(labels.shape[-1], np.int64)
        return labels.reshape(-1, labels.shape[-1])

    def _rows_are_one_hot(self, labels: np.ndarray) -> bool:
        """Whether a first part is one-hot; raises where that is not sure."""
        length = labels.shape[-1]
        if labels.ndim < 2 or length == 1 or self.num_classes not in (None, length):
            return False
        rows = labels.reshape(-1, length)
        if not ((rows == 0) | (rows == 1)).all():
            return False
        sums = rows.sum(axis=1)
        if (sums == 1).all() or (self.num_classes is not None and (sums <= 1).all()):
            return True
        raise ValueError(
            "Rows of zeros and ones may be one-hot, answers for several labels, or a mask of two "
            "classes: pass `multi_label=True` for several labels, `num_classes` for one-hot rows "
            f"or a mask, or flatten a mask. Received: shape {labels.shape}"
        )

    def _why(self, label: Any) -> str:
        if label != label or label != np.floor(label):
            return (
                f"Labels must be whole numbers. Received: {label:g}; count labels before they are "
                "smoothed or mixed."
            )
        if label < 0:
            return (
                f"Labels must be whole numbers of at least 0. Received: {label:g}; "
                f"`ignore_class={label:g}` leaves it out."
            )
        if self.num_classes is None:
            return (
                f"Labels must number the classes from 0. Received: {label:.0f}, which looks like "
                "an ID; pass `num_classes` if there are as many classes."
            )
        return (
            f"Labels must be whole numbers in 0 … {self.num_classes - 1}, since there are "
            f"{self.num_classes} classes. Received: {label:g}"
        )


# ----------------------------------------------------------------------------- where labels are


def check_ends(name: str, data: Any, otherwise: str = "take a part of it") -> None:
    """Raises `ValueError` for a dataset without an end.

    Such are a `tf.data.Dataset` that repeats, and a `keras.utils.PyDataset` whose number of batches
    is None.

    Args:
        name: Name of the argument.
        data: Data of any form.
        otherwise: What to do about it.
    """
    endless = isinstance(data, keras.utils.PyDataset) and data.num_batches is None
    if endless or (hasattr(data, "cardinality") and int(data.cardinality()) == -1):
        raise ValueError(f"`{name}` must end; {otherwise}. Received: an infinite dataset")


def _batches(labels: Any) -> tuple[int | None, Iterator[np.ndarray]]:
    """The number of batches, where it is known, and the labels of each."""
    check_ends("labels", labels)
    if isinstance(labels, keras.utils.PyDataset):
        steps = labels.num_batches
        return steps, (_labels_of(labels[i], alone=False) for i in range(steps))
    if isinstance(labels, (str, bytes, Mapping)):
        raise ValueError(
            "`labels` must be an array or a dataset; of several outputs pass the labels of one. "
            f"Received: {type(labels).__name__}"
        )
    pair = isinstance(labels, tuple) and len(labels) in (2, 3)
    if pair and any(len(getattr(part, "shape", ())) for part in labels):
        return 1, iter([_labels_of(labels)])  # Examples and labels, as in `fit`.
    if isinstance(labels, (list, tuple)) and not _is_batch(labels[0] if len(labels) else None):
        return 1, iter([_array(labels)])
    if hasattr(labels, "__array__") or hasattr(labels, "__array_interface__"):
        return 1, iter([_array(labels)])
    try:
        batches = iter(labels)
    except TypeError:
        raise ValueError(
            f"`labels` must be an array or a dataset. Received: {type(labels).__name__}"
        ) from None
    return operator.length_hint(labels) or None, map(_labels_of, batches)


def _is_batch(element: Any) -> bool:
    """Whether an element is examples with their labels, and not labels alone."""
    if isinstance(element, tuple):  # One of numbers is a row of labels.
        return any(hasattr(part, "shape") or not isinstance(part, Number) for part in element)
    return isinstance(element, list) and any(hasattr(part, "shape") for part in element)


def _labels_of(element: Any, *, alone: bool = True) -> np.ndarray:
    if not _is_batch(element) and alone and not isinstance(element, Mapping):
        return _array(element)
    if not isinstance(element, (tuple, list)) or len(element) not in (2, 3):
        raise ValueError(
            "Batches must be (examples, labels) or (examples, labels, sample_weight), or labels "
            f"alone. Received: a {type(element).__name__}"
            + (f" of {len(element)}" if hasattr(element, "__len__") else "")
        )
    if isinstance(element[1], Mapping):
        raise ValueError(
            "Labels of several outputs must be counted one by one: map the dataset to the labels "
            f"of one. Received: labels by name ({', '.join(map(str, element[1]))})"
        )
    labels = _array(element[1])
    shape = getattr(next(iter(keras.tree.flatten(element[0])), None), "shape", None)
    if labels.ndim and shape is not None and tuple(shape[:1]) not in ((len(labels),), (None,)):
        raise ValueError(
            "Examples and labels must be batched alike. Received: examples of shape "
            f"{tuple(shape)} with labels of shape {labels.shape}"
        )
    return labels


def _array(labels: Any) -> np.ndarray:
    if hasattr(labels, "detach"):  # Of torch, which may lie on a device.
        labels = labels.detach().cpu()
    try:
        values = np.asarray(labels)
        if values.dtype.kind not in "biuf":
            values = values.astype(np.float64)
    except (TypeError, ValueError, RuntimeError):
        values = np.empty(0, "U")
    if values.dtype.kind not in "biuf":
        raise ValueError(
            "Labels must be whole numbers in an array. Received: "
            f"{shown(labels)}; number the classes, and count rows of equal length."
        )
    return values
