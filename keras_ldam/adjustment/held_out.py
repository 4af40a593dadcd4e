"""Held-out examples: what a model gives for them, and which decisions their labels are about."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_ldam import counts as class_counts
from keras_ldam.adjustment.batches import batches_of, check_weights
from keras_ldam.adjustment.fitting import Examples
from keras_ldam.adjustment.outputs import Output
from keras_ldam.labels import check_labels
from keras_ldam.layers import Probabilities

MOST_SCORES = 2 * 10**8
"""Each takes about 90 bytes in a fit."""


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Held-out examples as they were given.

    Args:
        values: Values of the output, `(n, num_scores)`.
        labels: In 0 … C - 1, of L decisions, `(n, L)`.
        weights: `(n, L)`; 0 where the answer is unknown.
        several: Whether each score decides about a label of its own.
    """

    values: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    several: bool


@dataclasses.dataclass(frozen=True)
class Form:
    """The form of a model's decisions.

    Args:
        output: The output that is adjusted.
        num_scores: Length of its last axis.
        several: Whether each score decides about a label of its own.
        class_names: Names of the classes, or of the labels, in any form that has one for each.

    Raises:
        ValueError: if there is not one name for each, or two are equal.
    """

    output: Output
    num_scores: int
    several: bool
    class_names: Any = None

    def __post_init__(self) -> None:
        if self.class_names is not None:
            number = self.num_scores if self.several else self.num_classes
            class_counts.check_names(self.class_names, number)
            names = class_counts.in_class_order("class_names", self.class_names, number)
            object.__setattr__(self, "class_names", names)

    @property
    def num_classes(self) -> int:
        """C, the number of classes of one decision."""
        return 2 if self.several or self.num_scores == 1 else self.num_scores

    def spread(self, per_score: np.ndarray) -> np.ndarray:
        """Returns numbers per score `(…, num_scores)` as `(…, L, C)`."""
        if not self.several and self.num_scores > 1:
            return per_score[..., None, :]
        return np.stack([np.zeros_like(per_score), per_score], axis=-1)

    def joined(self, per_decision: np.ndarray) -> np.ndarray:
        """Returns numbers `(L, C)` as those to add to each score, `(num_scores,)`."""
        if not self.several and self.num_scores > 1:
            return per_decision[0]
        return per_decision[:, 1] - per_decision[:, 0]

    def name(self, j: int) -> str:
        """Returns how an error calls a class or label."""
        kind = "label" if self.several else "class"
        return f"{kind} {j}" + ("" if self.class_names is None else f" ({self.class_names[j]})")


def held_out(found: Output, data: Any) -> HeldOut:
    """Predicts held-out examples. Arguments and errors are those of `keras_ldam.adjust`."""
    parts, kept = [], 0
    for examples, *rest in batches_of(data):
        predicted = found.model.predict_on_batch(examples)
        parts.append([_array(part, found) for part in (predicted, *rest)])
        kept += parts[-1][0].size
        if kept > MOST_SCORES:
            raise ValueError(
                f"`data` may have at most {MOST_SCORES:,} scores, examples times "
                f"{parts[-1][0].shape[-1]:,} classes, since all of them are kept in memory: take "
                "fewer examples of each class, or pass `temperature`, `tau` and `offsets` in place "
                f"of data. Received: {kept:,} or more"
            )

    def column(place: int) -> np.ndarray:
        return np.concatenate([part[place] for part in parts])

    values = column(0).astype(np.float64)
    labels = column(1)
    weights = column(2).astype(np.float64).reshape(-1) if len(parts[0]) == 3 else None
    weights = np.ones(len(values)) if weights is None else weights
    if values.ndim != 2 or not len(values) == len(labels) == len(weights) or not len(values):
        raise ValueError(
            "The output must have shape (n, num_scores), labels and weights n rows, with at least "
            f"one example. Received: shapes {values.shape}, {labels.shape} and {weights.shape}"
        )
    check_weights(weights)
    counted = weights > 0  # The others are there for nothing, such as padding.
    loss = found.weighted_loss
    one_hot = labels.shape[1:] == (max(2, values.shape[1]),)
    exclusive = loss is not None and loss.counts.ndim == 1
    if one_hot and exclusive:
        counted &= (labels != 0).any(axis=-1)  # The classes exclude each other: without a label.
    labels = labels[:, None] if labels.ndim == 1 else labels
    known, ignored = np.ones(labels.shape, bool), getattr(found.loss, "ignore_class", None)
    if ignored is not None and not (one_hot and exclusive):
        known = labels != ignored
        labels = np.where(known, labels, 0)
        counted &= known.reshape(len(labels), -1).any(axis=1)
    if not counted.any():
        raise ValueError("`data` must have an example with a label and a weight above 0.")
    values, labels, known = values[counted], labels[counted], known[counted]
    labels, several = _decisions(labels, values, found)
    # Of one decision each the examples that are left have an answer.
    known = known if several else np.ones(labels.shape, bool)
    return HeldOut(values, labels, weights[counted, None] * known, several)


def _array(part: Any, found: Output) -> np.ndarray:
    """What a batch has for the output: one array, or one of several by name or place."""
    if isinstance(part, dict) and (found.name in part or len(part) == 1):
        part = part.get(found.name, next(iter(part.values())))
    elif isinstance(part, (tuple, list)) and any(getattr(each, "ndim", 0) for each in part):
        part = part[found.place]
    if isinstance(part, dict):
        raise ValueError(
            f"`data` must have labels of the output {found.name!r}. Received: labels by name "
            f"({', '.join(map(str, part))})"
        )
    return np.asarray(keras.ops.convert_to_numpy(part))


def _decisions(labels: np.ndarray, values: np.ndarray, output: Output) -> tuple[np.ndarray, bool]:
    """Labels `(n, L)` of the decisions, and whether each score decides about a label of its own."""
    num_scores = values.shape[1]
    if labels.ndim != 2 or labels.shape[1] not in (1, max(2, num_scores)):
        raise ValueError(
            f"Labels must have shape (n,), (n, 1) or (n, {max(2, num_scores)}). Received: shape "
            f"{labels.shape}"
        )
    if labels.shape[1] > 1 and np.any((labels > 0) & (labels < 1)):
        raise ValueError(
            "Held-out labels must be whole numbers or rows of 0 and 1: smooth and mix them for "
            f"training only. Received: {labels[(labels > 0) & (labels < 1)][0]:g}"
        )
    if num_scores == 1 and labels.shape[1] == 2:  # One-hot.
        check_labels(labels, 2)
        if not np.all(labels.sum(axis=1) == 1):
            raise ValueError(
                "Labels of shape (n, 2) for a single score must be one-hot. Received: a row with "
                f"the sum {labels.sum(axis=1)[labels.sum(axis=1) != 1][0]:g}"
            )
        labels = labels.argmax(axis=1)[:, None]
    if labels.shape[1] == 1:
        check_labels(labels, max(2, num_scores))
        return labels.astype(np.int64), False
    check_labels(labels, 2)
    if output.activation == "sigmoid" or not np.all(labels.sum(axis=1) == 1):
        if output.applied == "softmax":
            raise ValueError(
                "A softmax has one label for each example. Received: rows of labels that do not "
                "sum to 1"
            )
        return labels.astype(np.int64), True
    return labels.argmax(axis=1)[:, None], False


def examples_of(held: HeldOut, form: Form, scale: float, target: np.ndarray | None) -> Examples:
    """Returns the scores of decisions, weighted for a target prior `(C,)` if there is one."""
    undo = Probabilities(scale, applied=form.output.applied)
    scores = keras.ops.convert_to_numpy(undo.logits(held.values)).astype(np.float64)
    examples = Examples(form.spread(scores), held.labels, held.weights)
    if target is not None:
        shares = examples.frequencies()[0]
        if np.all(shares > 0):
            again = held.weights * (target / shares)[held.labels]
            examples = dataclasses.replace(examples, weights=again)
    return examples


def check_presence(examples: Examples, form: Form) -> np.ndarray:
    """Returns the number of held-out examples of each class, or of those that have each label.

    Raises:
        ValueError: if there are not two of each class.
    """
    present = examples.present()
    lacking = np.argwhere(present < 2)
    if len(lacking):
        decision, c = lacking[0]
        if form.several:
            what = f"{form.name(decision)}, {'with' if c else 'without'} it"
        else:
            what = form.name(c)
        raise ValueError(
            "Held-out data must have at least two examples of each class, better 20 or more. "
            f"Received: {present[decision, c]} of {what}"
        )
    return present[0] if not form.several else present[:, 1]
