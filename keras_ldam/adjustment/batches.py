"""Batches of examples with labels, from every form in which Keras takes data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_ldam.counting import check_ends


def batches_of(data: Any, batch_size: int = 32) -> Iterator[tuple[Any, ...]]:
    """Yields `(x, y)` or `(x, y, sample_weight)`, each once.

    Args:
        data: Arrays `(x, y)` or `(x, y, sample_weight)`, or a `tf.data.Dataset`, a
            `keras.utils.PyDataset` or another iterable of such batches.
        batch_size: Of arrays, 8 · `batch_size` examples come at a time.

    Raises:
        ValueError: for data in another form, without an end, or without an example, and where only
            some batches have sample weights.
    """
    if _is_batch(data) and not (isinstance(data, list) and isinstance(data[0], (tuple, list))):
        # Numbers in a list are no structure of several arrays.
        x, *rest = _without_none(data)
        data = (x, *(np.asarray(part) if _is_numbers(part) else part for part in rest))
        n, step = len(keras.tree.flatten(data[1])[0]), 8 * batch_size
        found: Iterator[Any] = (
            keras.tree.map_structure(lambda part, at=start: part[at : at + step], tuple(data))
            for start in range(0, n, step)
        )
    elif isinstance(data, keras.utils.PyDataset):
        check_ends("data", data)
        found = (data[index] for index in range(data.num_batches))
    elif hasattr(data, "__iter__") and not hasattr(data, "shape"):
        check_ends("data", data)
        found = iter(data)
    else:
        raise ValueError(_FORMS.format(received=type(data).__name__))
    size = 0
    for batch in found:
        if not _is_batch(batch):
            raise ValueError(_FORMS.format(received=f"{type(data).__name__} without labels"))
        batch = _without_none(batch)
        if size and len(batch) != size:
            raise ValueError(
                "`data` must have sample weights in every batch or in none. Received: batches of "
                f"{size} and of {len(batch)} parts"
            )
        size = len(batch)
        yield as_arrays(batch)
    if not size:
        raise ValueError("`data` must hold examples. Received: none")


def as_arrays(parts: Any) -> Any:
    """Returns a structure of which all can be given to a model.

    On another backend than TensorFlow that is not so for what a `tf.data.Dataset` gives.
    """

    def array(part: Any) -> Any:
        foreign = hasattr(part, "__array__") and not keras.ops.is_tensor(part)
        return np.asarray(part) if foreign else part

    return keras.tree.map_structure(array, parts)


_FORMS = (
    "`data` must be (x, y), (x, y, sample_weight), or batches of these, which end. "
    "Received: {received}"
)


def _is_batch(element: Any) -> bool:
    """Whether an element is examples with labels."""
    labeled = isinstance(element, (tuple, list)) and 2 <= len(element) <= 3
    return labeled and element[1] is not None


def _without_none(batch: Any) -> tuple[Any, ...]:
    """`(x, y, None)` is `(x, y)`, as it is for Keras."""
    return tuple(batch[:2] if batch[-1] is None else batch)


def check_weights(weights: np.ndarray) -> None:
    """Raises `ValueError` for sample weights that are none."""
    if not np.all(np.isfinite(weights) & (weights >= 0)) or not weights.any():
        raise ValueError("Sample weights must be finite numbers of at least 0, and not all 0.")


def _is_numbers(part: Any) -> bool:
    return isinstance(part, list) and not any(hasattr(each, "ndim") and each.ndim for each in part)
