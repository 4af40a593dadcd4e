"""Labels, weights and masks in every form that Keras passes on."""

from __future__ import annotations

import numbers
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ldam import keras_internals

_STRINGS = "Labels must be whole numbers. Received: strings; number the classes."
_TOLERANCE = 0.01
"""By how much the shares of a soft label may miss 1: labels may come in bfloat16."""
_CERTAIN = 1e30
"""What stands for an infinite score of two classes; any scale leaves it finite."""


def check_labels(labels: Any, num_classes: int) -> None:
    """Raises on a label that is no class, where values can be seen: outside compiled code.

    Args:
        labels: Whole numbers of any shape. A symbolic tensor passes.
        num_classes: K.

    Raises:
        ValueError: for a value that is not one of 0 … K-1, NaN and fractions included.
    """
    values = _visible(labels)
    if values is None:
        return
    wrong = values[~((values >= 0) & (values < num_classes) & (values == np.floor(values)))]
    if wrong.size:
        raise ValueError(
            f"Labels must be whole numbers in 0 … {num_classes - 1}, since there are "
            f"{num_classes} classes. Received: {wrong.flat[0]:g}"
        )


def present(
    y_true: Any,
    y_pred: Any,
    *,
    multi_label: bool = False,
    ignore_class: int | None = None,
    axis: int = -1,
    threshold: float = 0.0,
) -> tuple[Any, Any]:
    """Brings every kind of target into the one form that losses and metrics compute with.

    - The classes are put on the last axis.
    - A single score z becomes the pair (-z/2, z/2): its softmax is the sigmoid of z, and its
      difference is z. So two classes with one score are two classes like any other, and with
      `multi_label` each of the scores is.
    - What `ignore_class` names becomes class 0 with scores of 0, and what a mask leaves out.

    Args:
        y_true: Labels as for `prepare`. For single scores they are 0 or 1, or shares between, of
            shape `(…)` or `(…, 1)`; with `multi_label` of the shape of `y_pred`.
        y_pred: Scores, `(…, num_classes)`, or with the classes on `axis`.
        multi_label: Whether each score is an answer of its own.
        ignore_class: Integer label that counts nowhere; one-hot rows without a label are zeros.
        axis: Axis of the classes in `y_pred`, and in one-hot labels.
        threshold: Subtracted from single scores.

    Returns:
        Labels and scores; those given, where there is nothing to do.

    Raises:
        ValueError: if shapes do not fit, and, outside compiled code, for labels of single scores
            outside of [0, 1].
    """
    scores = ops.convert_to_tensor(y_pred)
    rank = len(scores.shape)
    if rank and not -rank <= axis < rank:
        raise ValueError(
            f"`axis` must be an axis of `y_pred`. Received: axis={axis}, `y_pred` of shape "
            f"{tuple(scores.shape)}"
        )
    moved = rank > 0 and axis not in (-1, rank - 1)
    single = multi_label or (rank > 0 and scores.shape[axis] == 1)
    if not (moved or single or ignore_class is not None):
        return y_true, y_pred
    if moved:
        y_true, scores = _classes_last(y_true, scores, axis)
    mask, known = keras_internals.mask_of(y_pred), None
    if ignore_class is not None:
        y_true, known = _without(y_true, scores, multi_label, ignore_class)
    if single:
        y_true = _answers(y_true, scores, multi_label)
        half = ops.cast(scores if multi_label else scores[..., 0], "float32")
        half = (half - threshold) / 2 if threshold else half / 2
        # Of two infinite scores the difference would be NaN.
        half = ops.where(ops.isinf(half), ops.sign(half) * _CERTAIN, half)
        other = -half
        # Keras takes -0.0 for less than 0.0, and a score of 0 would be class 1. The slope stays -1.
        other = other + ops.stop_gradient(ops.where(half == 0, 0.0, -half) - other)
        scores = ops.stack([other, half], axis=-1)
    if known is not None:
        scores = ops.where(ops.expand_dims(known, -1), scores, ops.zeros_like(scores))
    if mask is not None:
        mask = ops.cast(mask, "float32")  # It may be a share.
        if multi_label and len(mask.shape) == len(scores.shape) - 2:
            mask = ops.expand_dims(mask, -1) * ops.ones_like(half, dtype="float32")
        if known is not None:
            mask = _of_rank(mask, len(known.shape), "float32")
            # One of more axes says nothing of an example; see `weigh`.
            mask = ops.where(known, mask if len(mask.shape) == len(known.shape) else 1.0, 0.0)
    else:
        mask = known
    if mask is not None:
        keras_internals.set_mask(scores, mask)
    return y_true, scores


def prepare(y_true: Any, y_pred: Any, *, several: bool = False) -> tuple[Any, bool, Any]:
    """Brings labels and scores into one form.

    Args:
        y_true: Integer labels `(…)` or `(…, 1)`, or one-hot or soft labels `(…, num_classes)`. A
            row of zeros has no label: it weighs 0 in every loss and metric.
        y_pred: Scores `(…, num_classes)`; a single one is that of two classes, see `present`.
        several: Whether a row may have several labels, or none, each a decision of its own.

    Returns:
        Labels (int32 `(…)` or float32 `(…, num_classes)`), whether they are integers, and the
        scores in float32. Inside compiled code an integer label that is no class becomes -1, and a
        row that is no distribution becomes NaN.

    Raises:
        ValueError: if the shapes do not fit together, or, outside compiled code, for a label that
            is no class or a row that is no distribution.
    """
    y_true, y_pred = present(y_true, y_pred)
    scores = ops.cast(ops.convert_to_tensor(y_pred), "float32")
    rank = len(scores.shape)
    num_classes: Any = scores.shape[-1] if rank else None
    visible = _visible(y_true)  # Before a backend shortens whole numbers to 32 bits.
    labels = given = ops.convert_to_tensor(y_true)
    if rank and len(labels.shape) == rank and labels.shape[-1] in (num_classes, None):
        if labels.shape[-1] is None:  # As a generator declares them; they fail here if they differ.
            labels = ops.reshape(labels, ops.shape(scores))
        labels = ops.cast(labels, "float32")
        return _check_rows(labels, visible, several), False, scores
    if rank and len(labels.shape) == rank and labels.shape[-1] == 1:
        labels = ops.squeeze(labels, axis=-1)
    if not rank or len(labels.shape) != rank - 1 or not _fit(labels.shape, scores.shape[:-1]):
        raise ValueError(
            f"For `y_pred` of shape {tuple(scores.shape)}, `y_true` must hold integer labels of "
            f"shape {tuple(scores.shape[:-1])} (or with a last axis of 1), or one-hot or soft "
            f"labels of shape {tuple(scores.shape)}. Received: shape {tuple(given.shape)}"
        )
    return _whole(labels, visible, num_classes), True, scores


def without_scores(
    y_true: Any, shape: Any, num_classes: int, ignore_class: int | None = None
) -> tuple[Any, Any]:
    """Brings integer labels into the form of `prepare` where there are no scores beside them.

    Args:
        y_true: Integer labels of the axes of `shape`, or with a last axis of 1.
        shape: Shape of the examples, `(…)`.
        num_classes: K.
        ignore_class: Integer label that counts nowhere; it becomes class 0.

    Returns:
        Labels, int32 `(…)`, -1 where one is no class in compiled code, and which of them are known,
        booleans, or `None` without `ignore_class`.

    Raises:
        ValueError: if the shapes do not fit, and, outside compiled code, for a label that is no
            class.
    """
    visible, known = _visible(y_true), None
    labels = given = ops.convert_to_tensor(y_true)
    if len(labels.shape) == len(shape) + 1 and labels.shape[-1] == 1:
        labels = ops.squeeze(labels, axis=-1)
    if len(labels.shape) != len(shape) or not _fit(labels.shape, shape):
        raise ValueError(
            "Scores in chunks of classes need integer labels, one for each example. Received: "
            f"`y_true` of shape {tuple(given.shape)} for examples of shape {tuple(shape)}"
        )
    if ignore_class is not None:
        labels = _wide(labels)
        known = ops.not_equal(labels, ignore_class)
        labels = ops.where(known, labels, ops.zeros_like(labels))
        if visible is not None:
            visible = np.where(visible == ignore_class, 0, visible)
    return _whole(labels, visible, num_classes), known


def _wide(labels: Any) -> Any:
    """Labels of a type that can hold -1 and any number of classes: in uint8 256 is 0."""
    narrow = ("bool", "int8", "uint8", "int16", "uint16")
    dtype = keras.backend.standardize_dtype(labels.dtype)
    return ops.cast(labels, "int32") if dtype in narrow else labels


def _whole(labels: Any, visible: np.ndarray | None, num_classes: int) -> Any:
    """Integer labels as int32, with -1 for what is no class."""
    if keras.backend.standardize_dtype(labels.dtype) == "string":
        raise ValueError(_STRINGS)
    labels = _wide(labels)
    check_labels(labels if visible is None else visible, num_classes)
    # Before the cast, which would make a class of a fraction, of NaN, and of 2**32.
    is_class = ops.logical_and(labels >= 0, labels < num_classes)
    if keras.backend.is_float_dtype(labels.dtype):
        is_class = ops.logical_and(is_class, labels == ops.floor(labels))
    labels = ops.where(is_class, labels, ops.full_like(labels, -1))
    return ops.cast(labels, "int32")


def assert_labels(y_true: Any, y_pred: Any) -> Any:
    """Returns labels that TensorFlow's compiled code raises on where one of them is no class.

    Without it TensorFlow's cross-entropy raises on a CPU, and says -1 whatever the label. Elsewhere
    compiled code cannot raise, and the labels are returned as they are.
    """
    if keras.backend.backend() != "tensorflow" or _visible(y_true) is not None:
        return y_true
    import tensorflow as tf

    labels, sparse, scores = prepare(y_true, y_pred, several=True)
    if not sparse or tf.executing_eagerly():
        return y_true
    given = ops.convert_to_tensor(y_true)
    wrong = ops.reshape(labels, (-1,)) < 0
    message = (
        f"Labels must be whole numbers in 0 … {scores.shape[-1] - 1}; where there is none, as for "
        "void pixels, `ignore_class` of the loss names what stands there. Received:"
    )
    received = tf.boolean_mask(tf.reshape(given, [-1]), wrong)[:1]
    right = tf.logical_not(tf.reduce_any(wrong))
    with tf.control_dependencies([tf.debugging.Assert(right, [message, received])]):
        return tf.identity(given)


def check_classes(
    name: str,
    y_pred: Any,
    num_classes: int,
    *,
    axis: int = -1,
    multi_label: bool = False,
    given: str = "counts",
) -> None:
    """Raises `ValueError` unless scores have one entry for each class, or one for two classes.

    Args:
        name: Name of the loss or metric, for the error.
        y_pred: Scores, `(…, num_classes)`.
        num_classes: K, or the number of labels.
        axis: Axis of the classes.
        multi_label: Whether `counts` are those of labels that do not exclude each other.
        given: The argument that says how many they are, for the error.
    """
    shape = tuple(ops.convert_to_tensor(y_pred).shape)
    found = shape[axis] if -len(shape) <= axis < len(shape) else None
    if found == num_classes or (found == 1 and num_classes == 2 and not multi_label):
        return
    hint = ""
    if found == 1 and not multi_label:
        hint = " One score per example is for two classes, with labels 0 and 1."
    what = "labels" if multi_label else "classes"
    where = "last axis" if axis == -1 else f"axis {axis}"
    raise ValueError(
        f"{name}: `y_pred` must have {num_classes} {what} on its {where}, as given by `{given}`. "
        f"Received: shape {shape}.{hint}"
    )


def check_target(ignore_class: Any, axis: Any) -> tuple[int | None, int]:
    """Returns both arguments as integers.

    Raises:
        ValueError: unless `ignore_class` is a whole number or `None`, and `axis` a whole number.
    """
    for name, value in (("ignore_class", ignore_class), ("axis", axis)):
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not whole and not (name == "ignore_class" and value is None):
            raise ValueError(f"`{name}` must be a whole number. Received: {value!r}")
    return None if ignore_class is None else int(ignore_class), int(axis)


def class_of(y_true: Any, y_pred: Any) -> Any:
    """Returns the class of each example, int32 `(…)`: of a soft label that of the largest share.

    Arguments and errors as for `prepare`. A row of zeros has no class, and gives -1.
    """
    labels, sparse, _ = prepare(y_true, y_pred)
    if sparse:
        return labels
    largest = ops.where(ops.max(labels, axis=-1) > 0, ops.argmax(labels, axis=-1), -1)
    return ops.cast(largest, "int32")


def as_index(labels: Any, num_classes: int) -> Any:
    """Returns labels as int32 indices of classes; one that is no class becomes that of some class.

    The cast is needed: under other values of floatx Keras makes floats of whole numbers.
    """
    return ops.cast(ops.clip(labels, 0, num_classes - 1), "int32")


def weigh(weights: Any, y_pred: Any, sample_weight: Any = None) -> Any:
    """Multiplies weights by those of the examples, and by Keras' mask of the scores.

    Args:
        weights: Shape `(…)`, that of `y_pred` without its last axis.
        y_pred: Scores `(…, num_classes)`, which may carry a mask.
        sample_weight: `None`, or weights `(…)` or `(…, 1)`; for dense predictions also of fewer
            axes, such as `(batch,)`, which then hold for everything in an example.

    Returns:
        A tensor of the shape of `weights`.

    Raises:
        ValueError: if the shape of `sample_weight` does not fit.
    """
    rank = len(weights.shape)
    if sample_weight is not None:
        own = _of_rank(sample_weight, rank, weights.dtype)
        if len(own.shape) > rank or not _fit(own.shape, weights.shape, ones=True):
            shape = tuple(ops.convert_to_tensor(sample_weight).shape)
            raise ValueError(
                f"`sample_weight` must have the shape {tuple(weights.shape)} of the labels, or its "
                f"first axes. Received: shape {shape}"
            )
        weights = weights * own
    mask = keras_internals.mask_of(y_pred)
    mask = None if mask is None else _of_rank(mask, rank, weights.dtype)
    if mask is not None and len(mask.shape) == rank:
        # As Keras does: a mask may be a share.
        weights = ops.where(mask > 0, weights * mask, 0.0)
    return weights


def _of_rank(values: Any, rank: int, dtype: Any) -> Any:
    """Weights or a mask with as many axes as labels: one of an example is for all that is in it."""
    values = ops.cast(ops.convert_to_tensor(values), dtype)
    if len(values.shape) == rank + 1 and values.shape[-1] == 1:
        values = ops.squeeze(values, axis=-1)
    for _ in range(rank - len(values.shape)):
        values = ops.expand_dims(values, -1)
    return values


def _classes_last(y_true: Any, scores: Any, axis: int) -> tuple[Any, Any]:
    rank, num_classes = len(scores.shape), scores.shape[axis]
    labels = ops.convert_to_tensor(y_true) if _visible(y_true) is None else np.asarray(y_true)
    if len(labels.shape) == rank and labels.shape[axis] in (num_classes, 1):
        move = np.moveaxis if isinstance(labels, np.ndarray) else ops.moveaxis
        labels = move(labels, axis, -1)
    return labels, ops.moveaxis(scores, axis, -1)


def _without(y_true: Any, scores: Any, multi_label: bool, ignore_class: int) -> tuple[Any, Any]:
    """Labels of which none is `ignore_class`, and which of them never were."""
    visible = _visible(y_true)
    labels = ops.convert_to_tensor(y_true) if visible is None else visible
    num_classes, dtype = scores.shape[-1], keras.backend.standardize_dtype(labels.dtype)
    if dtype == "string":
        return y_true, None
    same_rank = not multi_label and len(labels.shape) == len(scores.shape)
    if same_rank and labels.shape[-1] != 1:
        if 0 <= ignore_class < num_classes:
            raise ValueError(
                "`ignore_class` is a value of integer labels; a one-hot row without a label is "
                f"zeros. Received: ignore_class={ignore_class}, labels of shape "
                f"{tuple(labels.shape)}"
            )
        return y_true, None
    if visible is not None:
        known = visible != ignore_class
        labels = np.where(known, visible, np.zeros((), visible.dtype))
    else:
        # As whole numbers wide enough for it.
        if not keras.backend.is_float_dtype(dtype) and dtype not in ("int32", "int64"):
            labels = ops.cast(labels, "int32")
        known = ops.not_equal(labels, ignore_class)
        labels = ops.where(known, labels, ops.zeros_like(labels))
    known = ops.convert_to_tensor(known)
    return labels, ops.squeeze(known, axis=-1) if same_rank else known


def _answers(y_true: Any, scores: Any, multi_label: bool) -> Any:
    """Labels for single scores: whole numbers, or, where they may be shares, soft rows of two."""
    visible = _visible(y_true)
    labels = ops.convert_to_tensor(y_true)
    shape = scores.shape if multi_label else scores.shape[:-1]
    if not multi_label and len(labels.shape) == len(scores.shape):
        if labels.shape[-1] == 2:
            return y_true  # One-hot.
        if labels.shape[-1] == 1:
            labels = ops.squeeze(labels, axis=-1)
        elif labels.shape[-1] is None:  # As a generator declares them.
            labels = ops.reshape(labels, ops.shape(scores)[:-1])
    if len(labels.shape) != len(shape) or not _fit(labels.shape, shape):
        raise ValueError(
            f"For `y_pred` of shape {tuple(scores.shape)}, `y_true` must hold labels 0 and 1 of "
            f"shape {tuple(shape)}. Received: shape {tuple(labels.shape)}"
        )
    if visible is not None:
        wrong = visible[~((visible >= 0) & (visible <= 1))]
        if wrong.size:
            hint = "" if wrong.flat[0] >= 0 else f"; `ignore_class={wrong.flat[0]:g}` leaves it out"
            raise ValueError(
                "Labels of a single score must be 0 or 1, or a share between them. Received: "
                f"{wrong.flat[0]:g}{hint}"
            )
    if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(labels.dtype)):
        return labels
    labels = ops.cast(labels, "float32")
    return ops.stack([1.0 - labels, labels], axis=-1)


def _check_rows(labels: Any, visible: np.ndarray | None, several: bool) -> Any:
    """Refuses rows of labels that are no distribution, or makes them NaN in compiled code."""
    if visible is not None:
        # Sums of float16 are too rough; more than float32 costs two copies of large one-hot labels.
        rows = np.asarray(visible, dtype=np.result_type(visible.dtype, np.float32))
        wrong = _no_distribution(rows, rows.sum(axis=-1), several, np)
        if wrong.any():
            at = np.argwhere(wrong)[0].tolist()
            form = "shares in [0, 1]" if several else "shares in [0, 1] with the sum 1, or zeros"
            raise ValueError(
                f"A row of one-hot or soft labels must hold {form}. Received: "
                f"{np.array2string(rows[tuple(at)], threshold=12)} at {at}"
            )
        return labels
    wrong = _no_distribution(labels, ops.sum(labels, axis=-1), several, ops)
    return ops.where(ops.expand_dims(wrong, -1), float("nan"), labels)


def _no_distribution(rows: Any, sums: Any, several: bool, numeric: Any) -> Any:
    # Written so that NaN is wrong too.
    inside = (numeric.min(rows, axis=-1) >= 0) & (numeric.max(rows, axis=-1) <= 1 + _TOLERANCE)
    if not several:
        inside = inside & ((abs(sums - 1) <= _TOLERANCE) | (sums == 0))
    return ~inside if numeric is np else numeric.logical_not(inside)


def _visible(labels: Any) -> np.ndarray | None:
    """The values of labels outside compiled code; `None` for a symbolic tensor.

    Raises:
        ValueError: for strings.
    """
    try:
        values = np.asarray(labels)
    except Exception:  # Each backend has an exception of its own for a symbolic tensor.
        return None
    first = values.flat[0] if values.dtype == object and values.size else None
    if values.dtype.kind in "SU" or isinstance(first, (str, bytes)):
        raise ValueError(_STRINGS)
    return values if values.dtype.kind in "biuf" else _as_float(values)


def _as_float(values: np.ndarray) -> np.ndarray | None:
    try:
        return values.astype(np.float64)  # bfloat16 is of a kind of its own.
    except (TypeError, ValueError):
        return None


def _fit(shape: Any, other: Any, *, ones: bool = False) -> bool:
    """Whether axes are equal, as far as they are known, from the first on."""
    return all(
        a == b or a is None or b is None or (ones and a == 1)
        for a, b in zip(shape, other, strict=False)
    )
