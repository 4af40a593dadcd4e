"""One pass of a model over examples: class errors, margins, confusions, reliability, warnings.

Everything here runs on any Keras backend and computes in NumPy. Batches are pairs
`(examples, labels)`.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np

from keras_ldam import adjustment, guards, keras_internals
from keras_ldam import counts as class_counts
from keras_ldam.adjustment.batches import as_arrays
from keras_ldam.adjustment.outputs import wants_probabilities
from keras_ldam.labels import check_labels
from keras_ldam.layers import CosineDense, cosine_heads, gives_probabilities, inputs_of
from keras_ldam.losses import weighted_losses

QUANTILES = {"min": 0.0, "q05": 0.05, "q50": 0.5}
"""The quantiles of a class's margins that a diagnosis keeps, by name."""

DENSE_CONFUSION = 200
"""A diagnosis keeps the whole confusion matrix up to this many classes."""


def class_errors(
    model: keras.Model,
    batches: Iterable[tuple[Any, Any]],
    counts: Sequence[int] | np.ndarray,
    *,
    at_once: int = 1,
) -> dict[str, Any]:
    """Returns the errors of a model by class, in percent.

    Args:
        model: Model with an output of shape `(batch, num_classes)`, or for two classes
            `(batch, 1)`, a single score or, behind a sigmoid, the probability of class 1.
        batches: Pairs of examples and labels of shape `(batch,)`.
        counts: Training examples per class, shape `(num_classes,)`, for the groups.
        at_once: Number of batches to predict at the same time, each in a thread of its own.

    Returns:
        `per_class_error`: a list, None for a class without examples; `mean_error`: the mean over
        classes; `balanced_accuracy`: 100 - `mean_error`; `error`: over all examples;
        `top5_error`, if there are more than 5 classes; `many_error`, `medium_error`,
        `few_error`, for each group of classes that has examples (see `keras_ldam.shot_groups`).
        For two classes also `auc`, the area under the ROC curve in percent, and `oracle_error`,
        the mean error at the threshold that is best for these examples: both measure how the model
        ranks examples, wherever its threshold lies.

    Raises:
        ValueError: if the output or a label does not fit `counts`, or there are no examples.
    """
    counts = class_counts.check_counts(counts)
    labels, ranks, preferences = _one_pass(
        functools.partial(_scores_of, model),
        lambda scores, labels: (labels, _ranks(scores, labels), _preferences(scores)),
        batches,
        len(counts),
        at_once=at_once,
        probabilities=_ends_in_probabilities(model),
    )
    return {**_errors(ranks, labels, counts), **_ranking(preferences, labels)}


def diagnose(
    model: keras.Model,
    batches: Iterable[tuple[Any, Any]],
    counts: Sequence[int] | np.ndarray,
    *,
    scale: float = 1.0,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the errors of a model by class, and its margins, confusions and reliability.

    Args:
        model: Model with scores or probabilities of shape `(batch, num_classes)`, or with a label
            for each pixel or step, `(batch, …, num_classes)`: each of them is an example.
        batches: Pairs of examples and labels of shape `(batch,)` or `(batch, …)`. What the loss
            ignores, its `ignore_class`, is left out.
        counts: Training examples per class, shape `(num_classes,)`.
        scale: s; the probabilities are softmax(s z). 1 for a model that returns logits.

    Returns:
        The errors, as of `class_errors`, and the diagnosis, which JSON can hold: `n`, the number
        of examples; `margins`, see `class_margins`; `confusion`, row the label and column the
        guess, None above `DENSE_CONFUSION` classes; `group_confusion`, the same over many, medium
        and few; `most_confused`, the most frequent mistakes as `[label, guess, number]`;
        `reliability`, see `adjustment.reliability`, None for an empty bin; `warnings`, sentences on
        what keeps the model or its margins from working, each with the line to change. They are
        meant for training examples at the end of training, and mostly there are none.

    Raises:
        ValueError: if the output or a label does not fit `counts`, or there are no examples.
    """
    counts = class_counts.check_counts(counts)
    predict, unit, head = _measured(model)
    sums = guards.Sums(counts)

    def keep(
        scores: np.ndarray, labels: np.ndarray, sizes: np.ndarray, features: Any = None
    ) -> tuple[np.ndarray, ...]:
        sums.add(scores, labels, features)
        return _examine(scores, labels, sizes, scale=scale)

    losses = weighted_losses(model)
    of_model = keras.tree.flatten(getattr(model, "loss", None))
    ignored = (getattr(loss, "ignore_class", None) for loss in of_model)
    labels, guesses, ranks, margins, confidences = _one_pass(
        predict,
        keep,
        batches,
        len(counts),
        ignore_class=next((label for label in ignored if label is not None), None),
        probabilities=_ends_in_probabilities(model),
    )
    warnings = guards.of_layers(model, losses)
    warnings += guards.of_pass(
        labels, guesses, margins, sums, loss=losses[0] if len(losses) == 1 else None, head=head
    )
    return _errors(ranks, labels, counts), {
        "n": len(labels),
        "margins": class_margins(margins, labels, len(counts), unit=unit),
        **_confusions(labels, guesses, counts),
        "reliability": _reliability(confidences, guesses == labels),
        "warnings": warnings,
    }


def errors_of_guesses(
    labels: np.ndarray, guesses: np.ndarray, counts: Sequence[int] | np.ndarray
) -> dict[str, Any]:
    """Returns the errors of guesses by class, in percent, where there are no scores of all classes.

    For very many classes: `keras_ldam.ChunkedTraining.best` gives the guesses.

    Args:
        labels: Class of each example, whole numbers of shape `(n,)`.
        guesses: Its guess, of shape `(n,)`, or the k best ones, best first, `(n, k)`.
        counts: Training examples per class, shape `(num_classes,)`, for the groups.

    Returns:
        What `class_errors` returns, but `per_class_error` as a float64 array of shape
        `(num_classes,)`, NaN for a class without examples; `top5_error` needs five guesses.

    Raises:
        ValueError: if labels or guesses do not fit `counts` or each other, or there are no
            examples.

    Example:

    >>> found = errors_of_guesses([0, 0, 1], [0, 1, 1], [900, 100, 10])
    >>> found["per_class_error"].tolist(), found["mean_error"]
    ([50.0, 0.0, nan], 25.0)
    """
    counts = class_counts.check_counts(counts)
    labels, guesses = np.asarray(labels), np.asarray(guesses)
    rows = guesses.shape[:1] == labels.shape and guesses.ndim in (1, 2)
    if labels.ndim != 1 or not rows or not guesses.size:
        raise ValueError(
            "`labels` must have the shape (n,), and `guesses` (n,) or (n, k), n and k at least 1. "
            f"Received: shapes {labels.shape} and {guesses.shape}"
        )
    check_labels(labels, len(counts))
    if guesses.dtype.kind not in "iu" or guesses.min() < 0 or guesses.max() >= len(counts):
        raise ValueError(  # Scores would all be wrong guesses.
            f"`guesses` must be classes, whole numbers in 0 … {len(counts) - 1}. Received: "
            f"{class_counts.shown(guesses)}"
        )
    guesses = guesses.reshape(len(labels), -1)
    right = guesses == labels[:, None]
    ranks = np.where(right.any(axis=1), right.argmax(axis=1), guesses.shape[1])
    errors, per_class = _rates(ranks, labels.astype(np.int64, copy=False), counts)
    if guesses.shape[1] < 5:
        errors.pop("top5_error", None)
    return {"per_class_error": per_class, **errors}


def scores(model: keras.Model, batches: Iterable[tuple[Any, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the output of a model on examples, with their labels.

    Args:
        model: Model with an output of shape `(batch, num_classes)`.
        batches: Pairs of examples and labels of shape `(batch,)`.

    Returns:
        Scores, float64 of shape `(n, num_classes)`, and labels, int64 of shape `(n,)`.

    Raises:
        ValueError: if a label does not fit the output, or there are no examples.
    """
    found, labels = _one_pass(
        functools.partial(_scores_of, model),
        lambda scores, labels: (scores.astype(np.float64), labels),
        batches,
        probabilities=_ends_in_probabilities(model),
    )
    return found, labels


# ----------------------------------------------------------------------------- the loop


def _one_pass(
    predict: Callable[[Any], tuple[np.ndarray, ...]],
    keep: Callable[..., tuple[np.ndarray, ...]],
    batches: Iterable[tuple[Any, Any]],
    num_classes: int | None = None,
    *,
    at_once: int = 1,
    ignore_class: int | None = None,
    probabilities: bool = False,
) -> list[np.ndarray]:
    """Predicts each batch, and concatenates the arrays that are kept of each.

    Args:
        predict: Maps examples to scores `(…, num_classes)` and what else `keep` needs, arrays with
            a row for each label.
        keep: Maps scores `(n, num_classes)`, labels `(n,)` and those to arrays of shape `(n, …)`.
        batches: Pairs of examples and labels.
        num_classes: Number of scores per example; None: any number.
        at_once: Number of batches to predict at the same time.
        ignore_class: Label whose examples are left out, if any.
        probabilities: Whether a single value is the probability of class 1, and not its score.
    """

    def of_batch(batch: tuple[Any, Any]) -> tuple[np.ndarray, ...]:
        examples, labels = batch
        labels = np.asarray(labels).reshape(-1)
        given, *seen = predict(as_arrays(examples))
        found = given.reshape(-1, given.shape[-1])  # A pixel or a step is an example.
        if found.ndim == 2 and found.shape[1] == 1 and num_classes in (None, 2):
            if probabilities:  # In float64, where differences of small ones are kept.
                found = found.astype(np.float64)
                found = np.concatenate([1 - found, found], axis=1)
            else:  # As in `labels.present`.
                found = np.concatenate([-found / 2, found / 2], axis=1)
        expected = num_classes or found.shape[-1]
        if expected > 1 and len(labels) == found.size:
            raise ValueError(
                "Labels must be whole numbers, one for each example, and not one-hot. Received: "
                f"{len(labels)} labels for {len(found)} examples"
            )
        if found.shape != (len(labels), expected):
            raise ValueError(
                f"The model must return {expected} scores per example, one per class, for "
                f"{len(labels)} labels. Received: output of shape {given.shape}"
            )
        if ignore_class is not None:
            known = labels != ignore_class
            found, labels, *seen = (part[known] for part in (found, labels, *seen))
        check_labels(labels, expected)
        return keep(found, labels.astype(np.int64), *seen)

    batches = iter(batches)
    # The first batch builds the model's function, which several threads must not do at once.
    parts = [of_batch(batch) for batch in itertools.islice(batches, 1)]
    if not parts:
        raise ValueError("`batches` must hold at least one example. Received: no batch")
    if at_once == 1:
        parts += map(of_batch, batches)
    else:
        with concurrent.futures.ThreadPoolExecutor(at_once) as threads:
            while some := list(itertools.islice(batches, at_once)):
                parts += threads.map(of_batch, some)
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def _scores_of(model: keras.Model, examples: Any) -> tuple[np.ndarray]:
    return (_array(model.predict_on_batch(examples)),)


def _ends_in_probabilities(model: keras.Model) -> bool:
    if getattr(model, "outputs", None):
        return gives_probabilities(model)
    return wants_probabilities(getattr(model, "loss", None))  # A subclass has no graph.


def _ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes come before the label; 0 is right. Of equal scores the first class does."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    after = (scores == own) & (np.arange(scores.shape[1]) >= labels[:, None])
    # A broken model must not look right: a NaN compares as not below anything, and so ranks last,
    # and so does a label whose score all of several classes have.
    if scores.shape[1] > 2:
        after &= (scores != own).any(axis=1, keepdims=True)
    return np.sum(~((scores < own) | after), axis=1) - ~after.any(axis=1)


def _array(tensor: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(tensor), dtype=np.float32)


# ----------------------------------------------------------------------------- errors


def _errors(ranks: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    errors, per_class = _rates(ranks, labels, counts)
    plain = [None if np.isnan(error) else round(float(error), 4) for error in per_class]
    return {"per_class_error": plain, **errors}


def _rates(
    ranks: np.ndarray, labels: np.ndarray, counts: np.ndarray
) -> tuple[dict[str, Any], np.ndarray]:
    """The errors over classes, and those of each class, NaN without examples."""
    num_classes = len(counts)
    totals = np.bincount(labels, minlength=num_classes)
    known = np.flatnonzero(totals)
    wrong = np.bincount(labels[ranks > 0], minlength=num_classes)
    per_class = np.full(num_classes, np.nan)
    per_class[known] = 100.0 * wrong[known] / totals[known]
    del totals, wrong  # There may be 10⁷ classes.
    mean = float(per_class[known].mean())
    errors = {
        "mean_error": round(mean, 4),
        "balanced_accuracy": round(100 - mean, 4),
        "error": round(100.0 * float(np.mean(ranks > 0)), 4),
    }
    if num_classes > 5:
        errors["top5_error"] = round(100.0 * float(np.mean(ranks >= 5)), 4)
    for group, classes in class_counts.shot_groups(counts).items():
        own = per_class[classes]
        if np.isfinite(own).any():
            errors[f"{group}_error"] = round(float(np.nanmean(own)), 4)
    return errors, per_class


def _preferences(scores: np.ndarray) -> np.ndarray:
    """How much higher the second of two classes scores than the first; empty for other numbers."""
    columns = slice(1, 2) if scores.shape[1] == 2 else slice(0, 0)
    return (scores - scores[:, :1])[:, columns]


def _ranking(preferences: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """AUC and the mean error at the best threshold, in percent, where there are two classes."""
    totals = np.bincount(labels, minlength=2)
    if preferences.shape[1] == 0 or totals.min() == 0 or not np.isfinite(preferences).all():
        return {}
    values, place = np.unique(preferences[:, 0], return_inverse=True)
    first, second = (
        np.bincount(place[labels == label], minlength=len(values)) / totals[label]
        for label in (0, 1)
    )
    # The share of the first class that lies below each value; ties count half for the area.
    below = np.append(0, np.cumsum(first))
    area = np.sum(second * (below[:-1] + below[1:]) / 2)
    errors = (1 - below + np.append(0, np.cumsum(second))) / 2
    least = max(float(errors.min()), 0.0)  # Rounding may leave it just below.
    return {"auc": round(100 * float(area), 4), "oracle_error": round(100 * least, 4)}


# ----------------------------------------------------------------------------- the diagnosis


def _measured(
    model: keras.Model,
) -> tuple[Callable[[Any], tuple[np.ndarray, ...]], str, CosineDense | None]:
    """A function from examples to scores, with the sizes to divide them by and the features, where
    they are known; the unit of the scores then; and the head, if the scores are its cosines.
    """
    last = model.layers[-1] if getattr(model, "layers", None) else None
    softmax = getattr(last, "activation", None) is keras.activations.softmax
    linear = getattr(last, "activation", None) is keras.activations.linear
    dense = isinstance(last, keras.layers.Dense) and (linear or softmax)
    heads: list[Any] = [last] if dense else cosine_heads(model)
    both = None
    if len(heads) == 1:
        with contextlib.suppress(AttributeError, ValueError):  # A subclass has no graph.
            (scores,) = model.outputs
            at_end = keras_internals.operation_of(scores) is heads[0]
            # A head that was called before has the input of that call.
            features = keras_internals.arguments_of(scores)[0] if at_end else heads[0].input
            both = keras.Model(inputs_of(model), [features, scores])

    def predict(examples: Any) -> tuple[np.ndarray, ...]:
        found = (model if both is None else both).predict_on_batch(examples)
        *features, scores = [_array(found)] if both is None else map(_array, found)
        rows = scores.size // scores.shape[-1]
        return scores, np.ones(rows, np.float32), *(part.reshape(rows, -1) for part in features)

    if not dense:
        is_probability = _ends_in_probabilities(model)
        unit = "probability" if is_probability else "cosine" if heads else "score"
        alone = len(heads) == 1 and not gives_probabilities(model)
        return predict, unit, heads[0] if alone else None
    if both is None:
        return predict, "probability" if softmax else "score", None
    kernel = _array(heads[0].kernel)
    longest = float(np.linalg.norm(kernel, axis=0).max())

    def predict_normalized(examples: Any) -> tuple[np.ndarray, ...]:
        scores, _, features = predict(examples)
        if softmax:  # The margins are those of the logits.
            scores = features @ kernel + (_array(heads[0].bias) if heads[0].use_bias else 0)
        return scores, np.maximum(longest * np.linalg.norm(features, axis=-1), 1e-12), features

    return predict_normalized, "normalized score", None


def _examine(
    scores: np.ndarray, labels: np.ndarray, sizes: np.ndarray, *, scale: float
) -> tuple[np.ndarray, ...]:
    """Label, guess, rank of the label, margin, and probability of the guess, of each example."""
    rows = np.arange(len(labels))
    guesses = np.argmax(scores, axis=1)
    rivals = scores.copy()
    rivals[rows, labels] = -np.inf
    margins = (scores[rows, labels] - rivals.max(axis=1)) / sizes
    best = scores[rows, guesses]
    if np.all(scores >= 0) and np.allclose(scores.sum(axis=1), 1, atol=1e-3):
        confidences = best  # The output is probabilities already.
    else:
        with np.errstate(invalid="ignore"):
            confidences = 1.0 / np.exp(scale * (scores - best[:, None])).sum(axis=1)
    return labels, guesses, _ranks(scores, labels), margins, confidences


def class_margins(
    margins: np.ndarray, labels: np.ndarray, num_classes: int, *, unit: str = "score"
) -> dict[str, Any]:
    """Returns the margins of each class γ_j: minimum and low quantiles of its examples' margins.

    Args:
        margins: Margin of each example, shape `(n,)`; see `keras_ldam.example_margins`.
        labels: Class of each example, shape `(n,)`.
        num_classes: Number of classes.
        unit: Unit of the margins, passed on.

    Returns:
        `{"unit": …, "min": […], "q05": […], "q50": […]}`, None for a class without examples or
        with a margin that is not finite.
    """
    margins, labels = np.asarray(margins, dtype=np.float64), np.asarray(labels)
    sizes = np.bincount(labels, minlength=num_classes)
    broken = np.bincount(labels[~np.isfinite(margins)], minlength=num_classes) > 0
    known = np.flatnonzero((sizes > 0) & ~broken)
    ordered = margins[np.lexsort((margins, labels))]
    first = (np.cumsum(sizes) - sizes)[known]

    def quantile(q: float) -> list[float | None]:
        place = q * (sizes[known] - 1)
        below = np.floor(place).astype(np.int64)
        low = ordered[first + below]
        high = ordered[first + np.minimum(below + 1, sizes[known] - 1)]
        found: list[float | None] = [None] * num_classes
        for j, value in zip(known, low + (high - low) * (place - below), strict=True):
            found[j] = round(float(value), 5)
        return found

    return {"unit": unit, **{name: quantile(q) for name, q in QUANTILES.items()}}


def _confusions(labels: np.ndarray, guesses: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    num_classes = len(counts)
    pairs = labels * num_classes + guesses
    cells, times = np.unique(pairs, return_counts=True)
    wrong = cells // num_classes != cells % num_classes
    order = np.argsort(-times[wrong], kind="stable")[:20]
    most = [
        [int(cell // num_classes), int(cell % num_classes), int(n)]
        for cell, n in zip(cells[wrong][order], times[wrong][order], strict=True)
    ]
    confusion = None
    if num_classes <= DENSE_CONFUSION:
        dense = np.bincount(pairs, minlength=num_classes**2)
        confusion = dense.reshape(num_classes, num_classes).tolist()
    groups = class_counts.shot_groups(counts)
    group_of = np.zeros(num_classes, dtype=np.int64)
    for i, classes in enumerate(groups.values()):
        group_of[classes] = i
    grouped = np.bincount(
        group_of[labels] * len(groups) + group_of[guesses], minlength=len(groups) ** 2
    )
    return {
        "confusion": confusion,
        "group_confusion": grouped.reshape(len(groups), len(groups)).tolist(),
        "most_confused": most,
    }


def _reliability(confidences: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    found = adjustment.reliability(confidences, right)

    def shown(values: np.ndarray) -> list[float | None]:
        return [None if np.isnan(value) else round(float(value), 5) for value in values]

    return {
        "confidence": shown(found["confidence"]),
        "accuracy": shown(found["accuracy"]),
        "count": found["count"].tolist(),
        "ece": round(found["ece"], 5),
    }
