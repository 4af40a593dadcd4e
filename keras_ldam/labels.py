"""Labels, weights and masks, in the forms in which Keras hands them on."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops
from keras.src.backend import get_keras_mask


def check_labels(labels, num_classes: int) -> None:
    """Raises on a label that is no class, where values can be seen: outside a compiled step.

    Args:
        labels: Whole numbers in any shape. A symbolic tensor passes.
        num_classes: K.

    Raises:
        ValueError: for a value that is not one of 0 … K-1, NaN and fractions included.
    """
    try:
        values = np.asarray(labels)
    except Exception:  # A symbolic tensor: each backend has an exception of its own for it.
        return
    wrong = values[~((values >= 0) & (values < num_classes) & (values == np.floor(values)))]
    if wrong.size:
        raise ValueError(
            f"labels must be whole numbers in 0 … {num_classes - 1}, since there are "
            f"{num_classes} classes; received {wrong.flat[0]:g}."
        )


def prepare(y_true, y_pred):
    """Labels and scores in one form.

    Args:
        y_true: Integer labels `[…]` or `[…, 1]`, or one-hot or soft labels `[…, K]`.
        y_pred: Scores `[…, K]`.

    Returns:
        Labels (int32 `[…]` or float32 `[…, K]`), whether they are integers, and the scores in
        float32.

    Raises:
        ValueError: if the shapes do not fit together, or, outside compiled code, for a label that
            is no class.
    """
    scores = ops.cast(ops.convert_to_tensor(y_pred), "float32")
    labels = given = ops.convert_to_tensor(y_true)
    num_classes, rank = scores.shape[-1] if len(scores.shape) else None, len(scores.shape)
    if rank and len(labels.shape) == rank and labels.shape[-1] == num_classes:
        return ops.cast(labels, "float32"), False, scores
    if rank and len(labels.shape) == rank and labels.shape[-1] == 1:
        labels = ops.squeeze(labels, axis=-1)
    if not rank or len(labels.shape) != rank - 1 or not _fit(labels.shape, scores.shape[:-1]):
        raise ValueError(
            f"for y_pred of shape {tuple(scores.shape)}, y_true must hold integer labels of shape "
            f"{tuple(scores.shape[:-1])} (or with a last axis of 1), or one-hot or soft labels of "
            f"shape {tuple(scores.shape)}; received shape {tuple(given.shape)}."
        )
    if keras.backend.standardize_dtype(labels.dtype) == "string":
        raise ValueError("labels must be whole numbers; received strings. Number the classes.")
    check_labels(labels, num_classes)
    if keras.backend.is_float_dtype(labels.dtype):
        # As whole numbers a fraction, and NaN, would become a class; -1 is none.
        labels = ops.where(labels == ops.floor(labels), labels, -1)
    return ops.cast(labels, "int32"), True, scores


def class_of(y_true, y_pred):
    """The class of each example, int32 `[…]`: of soft labels that of the largest share.

    Arguments and errors as of `prepare`.
    """
    labels, sparse, _ = prepare(y_true, y_pred)
    return labels if sparse else ops.cast(ops.argmax(labels, axis=-1), "int32")


def weigh(weights, y_pred, sample_weight=None):
    """Multiplies weights by the examples' own; 0 where Keras' mask leaves a step out.

    Args:
        weights: Shape `[…]`, that of `y_pred` without its last axis.
        y_pred: Scores `[…, K]`, which may carry a mask.
        sample_weight: None, or weights `[…]` or `[…, 1]`; for dense predictions also of fewer
            axes, `[batch]` say, and then the same for all that an example holds.

    Returns:
        A tensor of the shape of `weights`.

    Raises:
        ValueError: if the shape of `sample_weight` does not fit.
    """
    rank = len(weights.shape)
    if sample_weight is not None:
        own = ops.cast(ops.convert_to_tensor(sample_weight), weights.dtype)
        if len(own.shape) == rank + 1 and own.shape[-1] == 1:
            own = ops.squeeze(own, axis=-1)
        if len(own.shape) > rank or not _fit(own.shape, weights.shape, ones=True):
            raise ValueError(
                f"sample_weight must have the shape {tuple(weights.shape)} of the labels, or the "
                f"first axes of it; received shape {tuple(own.shape)}."
            )
        for _ in range(rank - len(own.shape)):
            own = ops.expand_dims(own, -1)
        weights = weights * own
    mask = get_keras_mask(y_pred)  # A compiled step on JAX has it elsewhere than on the tensor.
    if mask is not None and len(mask.shape) == rank:
        weights = ops.where(mask, weights, ops.zeros_like(weights))
    return weights


def _fit(shape, other, *, ones=False):
    """Whether axes are equal, as far as they are known, from the first on."""
    return all(
        a == b or a is None or b is None or (ones and a == 1)
        for a, b in zip(shape, other, strict=False)
    )
