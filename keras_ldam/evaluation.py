"""What became of the margins: of each class, with its confusions and the trust in its scores.

`margin` and `ClassMargins` work on any backend's tensors; the rest is NumPy, on a model's scores
over whole splits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np

from keras_ldam import adjustment
from keras_ldam import counts as class_counts
from keras_ldam.labels import check_labels
from keras_ldam.layers import gives_cosines

QUANTILES = {"min": 0.0, "q05": 0.05, "q50": 0.5}
"""What is kept of a class's margins: name and quantile."""

DENSE_CONFUSION = 200
"""Up to this many classes a confusion matrix is kept cell by cell."""

# ----------------------------------------------------------------------------- a model's scores


@dataclasses.dataclass(frozen=True)
class Scored:
    """What is kept of a model's scores on n examples.

    Args:
        labels: Class of each, `[n]`.
        guesses: Class with the best score, `[n]`.
        ranks: How many classes scored at least as high as the label; 0 is right, `[n]`.
        margins: γ, in `unit`, `[n]`.
        confidences: Probability of the guess, 0 to 1, `[n]`.
        unit: Unit of the margins.
    """

    labels: np.ndarray
    guesses: np.ndarray
    ranks: np.ndarray
    margins: np.ndarray
    confidences: np.ndarray
    unit: str


def score(
    model: keras.Model,
    batches: Iterable[tuple[Any, np.ndarray]],
    num_classes: int,
    *,
    scale: float = 1.0,
) -> Scored:
    """Runs a model over examples.

    Args:
        model: Gives scores or probabilities `[batch, K]`.
        batches: Pairs of examples and labels `[batch]`.
        num_classes: K.
        scale: s; the probabilities are softmax(s z). 1 for a model that gives logits.

    Raises:
        ValueError: if the model does not give K scores for each example, or a label is not a class.
    """
    predict, unit = _scorer(model)
    parts = []
    for examples, labels in batches:
        labels = np.asarray(labels).reshape(-1).astype(np.int64)
        scores, sizes = predict(examples)
        if scores.shape != (len(labels), num_classes):
            raise ValueError(
                f"the model must give {num_classes} scores for each example; for {len(labels)} "
                f"examples its output has shape {scores.shape}."
            )
        check_labels(labels, num_classes)
        parts.append((labels, *_kept(scores, labels, sizes, scale)))
    if not parts:
        raise ValueError("there is no example to evaluate the model on.")
    return Scored(*(np.concatenate(part) for part in zip(*parts, strict=True)), unit)


def _kept(scores, labels, sizes, scale):
    rows = np.arange(len(labels))
    own = scores[rows, labels]
    guesses = np.argmax(scores, axis=1)
    # As in the evaluation: a score that is not a number, below which nothing is, ranks last.
    ranks = np.sum(~(scores < own[:, None]), axis=1) - 1
    rivals = scores.copy()
    rivals[rows, labels] = -np.inf
    margins = (own - rivals.max(axis=1)) / sizes
    best = scores[rows, guesses]
    if np.all(scores >= 0) and np.allclose(scores.sum(axis=1), 1, atol=1e-3):
        return guesses, ranks, margins, best
    with np.errstate(invalid="ignore"):
        confidences = 1.0 / np.exp(scale * (scores - best[:, None])).sum(axis=1)
    return guesses, ranks, margins, confidences


def _scorer(model) -> tuple[Callable, str]:
    """A function from examples to scores and the size that they are measured by; and the unit."""
    last = model.layers[-1] if getattr(model, "layers", None) else None
    softmax = getattr(last, "activation", None) is keras.activations.softmax
    linear = getattr(last, "activation", None) is keras.activations.linear
    if isinstance(last, keras.layers.Dense) and (linear or softmax):
        try:
            both = keras.Model(model.inputs, [last.input, model.outputs[0]])
        except (AttributeError, ValueError):  # A subclassed model has no graph to look into.
            both = None
        if both is not None:
            kernel = _array(last.kernel)
            longest = float(np.linalg.norm(kernel, axis=0).max())

            def predict(examples):
                features, scores = both.predict_on_batch(examples)
                features, scores = _array(features), _array(scores)
                if softmax:  # Its margins are those of the scores before it.
                    scores = features @ kernel + (_array(last.bias) if last.use_bias else 0)
                sizes = longest * np.linalg.norm(features, axis=-1)
                return scores, np.maximum(sizes, 1e-12)

            return predict, "normalised score"

    def predict(examples):
        scores = _array(model.predict_on_batch(examples))
        return scores, np.ones(len(scores), np.float32)

    if gives_cosines(model):
        return predict, "cosine"
    is_probability = softmax or isinstance(last, keras.layers.Softmax)
    return predict, "probability" if is_probability else "score"


def _array(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor), dtype=np.float32)


# ----------------------------------------------------------------------------- what they tell


def diagnose(scored: Scored, counts: Sequence[int] | np.ndarray) -> dict:
    """Margins, confusions and reliability of a scored split, as JSON can hold them.

    Args:
        scored: From `score`.
        counts: Training examples per class, shape `[K]`.

    Returns:
        `n`; `margins`: `{"unit", "min", "q05", "q50"}`, each quantile a list over classes, None
        for a class without an example; `confusion`: K lists of K counts, row the label, column
        the guess, or None above `DENSE_CONFUSION` classes; `group_confusion`: the same over many,
        medium and few; `most_confused`: `[label, guess, count]`, the most frequent mistakes;
        `reliability`: see `adjustment.reliability`, None for an empty bin.
    """
    num_classes = len(counts)
    pairs = scored.labels * num_classes + scored.guesses
    cells, times = np.unique(pairs, return_counts=True)
    wrong = cells // num_classes != cells % num_classes
    order = np.argsort(-times[wrong], kind="stable")[:20]
    most = [
        [int(cell // num_classes), int(cell % num_classes), int(n)]
        for cell, n in zip(cells[wrong][order], times[wrong][order], strict=True)
    ]
    confusion = None
    if num_classes <= DENSE_CONFUSION:
        confusion = np.bincount(pairs, minlength=num_classes**2)
        confusion = confusion.reshape(num_classes, num_classes).tolist()
    groups = class_counts.shot_groups(counts)
    group_of = np.zeros(num_classes, dtype=np.int64)
    for i, classes in enumerate(groups.values()):
        group_of[classes] = i
    grouped = np.bincount(
        group_of[scored.labels] * len(groups) + group_of[scored.guesses],
        minlength=len(groups) ** 2,
    )
    return {
        "n": len(scored.labels),
        "margins": class_margins(scored.margins, scored.labels, num_classes, scored.unit),
        "confusion": confusion,
        "group_confusion": grouped.reshape(len(groups), len(groups)).tolist(),
        "most_confused": most,
        "reliability": _reliability(scored),
    }


def class_margins(
    margins: np.ndarray, labels: np.ndarray, num_classes: int, unit: str = "score"
) -> dict:
    """γ_j of each class: the minimum and low quantiles of its examples' margins.

    Args:
        margins: γ of each example, `[n]`.
        labels: Class of each example, `[n]`.
        num_classes: K.
        unit: Unit of the margins, kept as it is.

    Returns:
        `{"unit": …, "min": […], "q05": […], "q50": […]}`; None for a class without an example.
    """
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels, minlength=num_classes))
    own = np.split(np.asarray(margins)[order], ends[:-1])
    return {
        "unit": unit,
        **{
            name: [
                round(float(np.quantile(values, q)), 5)
                if len(values) and np.isfinite(values).all()
                else None
                for values in own
            ]
            for name, q in QUANTILES.items()
        },
    }


def _reliability(scored):
    found = adjustment.reliability(scored.confidences, scored.guesses == scored.labels)

    def shown(values):
        return [None if np.isnan(value) else round(float(value), 5) for value in values]

    return {
        "confidence": shown(found["confidence"]),
        "accuracy": shown(found["accuracy"]),
        "count": found["count"].tolist(),
        "ece": round(found["ece"], 5),
    }


def errors_of_ranks(ranks: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> dict:
    """Errors as of `training.evaluate_split`, from how many classes scored as high as the label."""
    num_classes = len(counts)
    totals = np.bincount(labels, minlength=num_classes)
    wrong = np.bincount(labels[ranks > 0], minlength=num_classes)
    with np.errstate(invalid="ignore"):
        per_class = 100.0 * wrong / totals
    mean = float(np.nanmean(per_class))
    errors = {
        "per_class_error": [None if np.isnan(e) else round(float(e), 4) for e in per_class],
        "mean_error": round(mean, 4),
        "balanced_accuracy": round(100 - mean, 4),
        "error": round(100.0 * float(np.mean(ranks > 0)), 4),
    }
    if num_classes > 5:
        errors["top5_error"] = round(100.0 * float(np.mean(ranks >= 5)), 4)
    for group, classes in class_counts.shot_groups(counts).items():
        if np.isfinite(per_class[classes]).any():
            errors[f"{group}_error"] = round(float(np.nanmean(per_class[classes])), 4)
    return errors
