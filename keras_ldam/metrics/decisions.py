"""What was decided in a batch: labels, guesses, weights, and which guesses are right."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ldam.labels import as_index, class_of, weigh, without_scores


def decisions(y_true: Any, y_pred: Any, sample_weight: Any = None) -> tuple[Any, Any, Any, Any]:
    """Returns what metrics of decisions count, for each example of a batch.

    Args:
        y_true: Labels `(…)` or `(…, 1)`, or one-hot `(…, num_classes)`.
        y_pred: Scores `(…, num_classes)`.
        sample_weight: Optional weights, `(…)` or, for dense predictions, `(batch,)`.

    Returns:
        Labels and guesses, int32 `(n,)`; weights, float32 `(n,)`, 0 where a mask or a row of zeros
        leaves an example out; and the weights of the guesses, which are 0 too where a score is NaN:
        a broken model guesses nothing.

    Raises:
        ValueError: if shapes do not fit, and, outside compiled code, for a label that is no class;
            inside, such an example is left out.
    """
    y_pred = ops.convert_to_tensor(y_pred)
    labels = class_of(y_true, y_pred)
    weights = weigh(ops.ones_like(labels, dtype="float32"), y_pred, sample_weight)
    labels, weights = ops.reshape(labels, (-1,)), ops.reshape(weights, (-1,))
    weights = ops.where(labels >= 0, weights, 0.0)
    guesses = ops.cast(ops.reshape(ops.argmax(y_pred, axis=-1), (-1,)), "int32")
    # Of nothing but NaN argmax takes class 0; a broken model must not look right.
    broken = ops.reshape(ops.any(ops.not_equal(y_pred, y_pred), axis=-1), (-1,))
    guessed = ops.where(broken, 0.0, weights)
    return as_index(labels, y_pred.shape[-1]), guesses, weights, guessed


def are_guesses(y_pred: Any, num_classes: int) -> bool:
    """Whether what a metric is given are classes, whole numbers `(…, 1)`, in place of scores.

    Of two classes they are scores: a single one is the score of class 1.
    """
    whole = not keras.backend.is_float_dtype(keras.backend.standardize_dtype(y_pred.dtype))
    return whole and num_classes > 2 and len(y_pred.shape) > 0 and y_pred.shape[-1] == 1


def guessed_decisions(
    y_true: Any, guesses: Any, sample_weight: Any, num_classes: int, ignore_class: int | None
) -> tuple[Any, Any, Any, Any]:
    """What `decisions` returns, of guesses `(…, 1)`; -1 is none."""
    labels, known = without_scores(y_true, guesses.shape[:-1], num_classes, ignore_class)
    weights = weigh(ops.ones_like(labels, dtype="float32"), guesses, sample_weight)
    if known is not None:
        weights = ops.where(known, weights, 0.0)
    labels, weights = ops.reshape(labels, (-1,)), ops.reshape(weights, (-1,))
    weights = ops.where(labels >= 0, weights, 0.0)
    guesses = ops.cast(ops.reshape(guesses, (-1,)), "int32")
    return as_index(labels, num_classes), guesses, weights, weights
