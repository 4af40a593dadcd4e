"""What is done to a trained model: its reliability, a temperature, a shift to another prior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_ldam import counts as class_counts
from keras_ldam import extras
from keras_ldam.labels import check_labels
from keras_ldam.layers import ScaledSoftmax, cosine_heads, gives_probabilities

TEMPERATURES = (0.05, 20.0)
"""The range in which a temperature is fitted."""

BINS = 15
"""Bins of confidence, as in Guo et al., 2017."""


def reliability(
    confidences: Sequence[float] | np.ndarray,
    right: Sequence[bool] | np.ndarray,
    *,
    weights: Sequence[float] | np.ndarray | None = None,
    bins: int = BINS,
) -> dict[str, Any]:
    """Returns how often guesses of a given confidence are right.

    Bin b of B holds the guesses whose confidence lies in (b/B, (b+1)/B].

    Args:
        confidences: Probability of each guess, in [0, 1], shape `(n,)`; NaN counts as 0.
        right: Whether each guess is right, shape `(n,)`.
        weights: Weight of each guess, ≥ 0, shape `(n,)`. Defaults to equal weights.
        bins: B, the number of bins of equal width, at least 1.

    Returns:
        `"confidence"` and `"accuracy"` of each bin (weighted means, NaN for an empty bin),
        `"count"`, the number of guesses in each bin, and `"ece"`, the expected calibration error
        Σ_b W_b/W |accuracy_b - confidence_b|, where W_b is the sum of the bin's weights.

    Raises:
        ValueError: if the shapes do not fit, there is no guess, or `bins` is below 1.

    Example:

    >>> found = reliability(np.array([0.75, 0.75]), np.array([True, False]), bins=2)
    >>> found["count"].tolist(), found["ece"]
    ([0, 2], 0.25)

    References:
        Guo et al., 2017, "On Calibration of Modern Neural Networks", section 2.
    """
    confidences = np.nan_to_num(np.asarray(confidences, dtype=np.float64))
    right = np.asarray(right, dtype=np.float64)
    weights = np.ones(len(right)) if weights is None else np.asarray(weights, dtype=np.float64)
    if not len(right) or not confidences.shape == right.shape == weights.shape == (len(right),):
        raise ValueError(
            "`confidences`, `right` and `weights` must be vectors of the same length, with at "
            f"least one guess. Received: shapes {confidences.shape}, {right.shape} and "
            f"{weights.shape}"
        )
    if bins < 1:
        raise ValueError(f"`bins` must be at least 1. Received: bins={bins}")
    place = np.clip(np.ceil(confidences * bins).astype(np.int64) - 1, 0, bins - 1)

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(place, values, minlength=bins)

    weight, sum_right, sum_confidence = map(sums, (weights, weights * right, weights * confidences))
    with np.errstate(invalid="ignore"):
        return {
            "confidence": sum_confidence / weight,
            "accuracy": sum_right / weight,
            "count": np.bincount(place, minlength=bins),
            "ece": float(np.abs(sum_right - sum_confidence).sum() / weight.sum()),
        }


def expected_calibration_error(
    probabilities: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    *,
    weights: Sequence[float] | np.ndarray | None = None,
    bins: int = BINS,
) -> float:
    """Returns the mean distance between confidence and accuracy, the `"ece"` of `reliability`.

    Args:
        probabilities: Shape `(n, num_classes)`; the largest is the guess and its confidence.
        labels: Class of each example, shape `(n,)` or `(n, 1)`.
        weights: Weight of each example, ≥ 0, shape `(n,)`. Defaults to equal weights.
        bins: See `reliability`.

    Returns:
        A fraction in [0, 1].

    Raises:
        ValueError: if the shapes do not fit, a label is not a class, or there is no example.

    Example:

    >>> expected_calibration_error(np.array([[0.75, 0.25], [0.75, 0.25]]), np.array([0, 1]))
    0.25
    """
    probabilities, labels, weights = _check(probabilities, labels, weights)
    right = probabilities.argmax(axis=1) == labels
    return reliability(probabilities.max(axis=1), right, weights=weights, bins=bins)["ece"]


def fit_temperature(
    logits: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    *,
    weights: Sequence[float] | np.ndarray | None = None,
    shift: np.ndarray | float = 0.0,
) -> float:
    """Returns the temperature T under which softmax(logits / T + shift) fits the labels best.

    It minimizes the weighted mean of -log p(label), which is convex in 1/T, so the minimum is
    unique. The search is bounded by `TEMPERATURES`; the result lies at one end if no T inside is
    best, for example if all examples are right.

    Args:
        logits: Shape `(n, num_classes)`.
        labels: Class of each example, shape `(n,)` or `(n, 1)`.
        weights: Weight of each example, ≥ 0, shape `(n,)`. Defaults to equal weights.
        shift: Added after the division, shape `(num_classes,)`; see `prior_shift`.

    Returns:
        T.

    Raises:
        ValueError: if the shapes do not fit, a label is not a class, or there is no example.

    Example:

    ```python
    logits, labels = keras_ldam.evaluation.scores(model, validation_batches)
    temperature = fit_temperature(logits, labels)
    ```

    References:
        Guo et al., 2017, "On Calibration of Modern Neural Networks", section 4.2.
    """
    with extras.needed("export", by="fit_temperature"):
        from scipy import optimize

    logits, labels, weights = _check(logits, labels, weights)
    found = optimize.minimize_scalar(
        lambda log: negative_log_likelihood(logits / np.exp(log) + shift, labels, weights=weights),
        bounds=np.log(TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def negative_log_likelihood(
    logits: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    *,
    weights: Sequence[float] | np.ndarray | None = None,
) -> float:
    """Returns the weighted mean of -log softmax(logits)[label], in nats.

    Arguments and errors are those of `fit_temperature`.
    """
    logits, labels, weights = _check(logits, labels, weights)
    return float(np.average(-_log_softmax(logits)[np.arange(len(labels)), labels], weights=weights))


def softmax(logits: Sequence[float] | np.ndarray) -> np.ndarray:
    """Returns exp(z_j) / Σ_k exp(z_k) over the last axis, in float64."""
    return np.exp(_log_softmax(np.asarray(logits, dtype=np.float64)))


def prior_weights(
    labels: Sequence[int] | np.ndarray, prior: Sequence[float] | np.ndarray | Mapping[int, float]
) -> np.ndarray:
    """Returns weights under which examples stand for a population with other class frequencies.

    Args:
        labels: Class of each example, shape `(n,)` or `(n, 1)`.
        prior: Class frequencies of the population π, shape `(num_classes,)`, or by class.

    Returns:
        π_y / (share of class y in `labels`) for each example, shape `(n,)`.

    Raises:
        ValueError: if a label is not a class, or `prior` is not one number per class.

    Example:

    >>> prior_weights([0, 0, 0, 1], [0.5, 0.5]).round(3).tolist()
    [0.667, 0.667, 0.667, 2.0]
    """
    prior = class_counts.per_class("prior", prior, len(prior))
    labels = _column_or_vector(labels)
    check_labels(labels, len(prior))
    labels = labels.astype(np.int64)
    shares = np.bincount(labels, minlength=len(prior)) / len(labels)
    return prior[labels] / shares[labels]


def prior_shift(
    num_classes: int,
    *,
    counts: Sequence[int] | np.ndarray | None = None,
    target_prior: Sequence[float] | np.ndarray | Mapping[Any, float] | None = None,
    source_prior: Sequence[float] | np.ndarray | Mapping[Any, float] | None = None,
    class_names: Sequence[str] | None = None,
) -> tuple[np.ndarray, list[float] | None, list[float] | None]:
    """Returns the shift of the logits to another prior, log π_j - log ρ_j.

    Args:
        num_classes: K.
        counts: Training examples per class, shape `(num_classes,)`; used as ρ without
            `source_prior`.
        target_prior: π, class frequencies where the model is used: K numbers above 0, normalized
            here, or such numbers by class. None: no shift.
        source_prior: ρ, class frequencies that the scores have learned, in the same form.
        class_names: Names that may stand for the classes in priors with keys.

    Returns:
        The shift, float32 of shape `(num_classes,)`, and the normalized target and source priors;
        both are None without a target prior.

    Raises:
        ValueError: if a prior is not K finite numbers above 0, or there is no source prior.

    Example:

    >>> shift, target, source = prior_shift(2, counts=[90, 10], target_prior=[1, 1])
    >>> print(shift.round(3), target, source)
    [-0.588  1.609] [0.5, 0.5] [0.9, 0.1]

    References:
        Saerens et al., 2002, "Adjusting the Outputs of a Classifier to New a Priori
        Probabilities".
    """
    if target_prior is None:
        if source_prior is not None:
            raise ValueError(
                "`source_prior` needs `target_prior`. Received: "
                f"target_prior=None, source_prior={source_prior}"
            )
        return np.zeros(num_classes, np.float32), None, None
    if source_prior is None:
        if counts is None:
            raise ValueError(
                "`target_prior` needs `counts`, the training examples per class, or "
                "`source_prior`. Received: counts=None, source_prior=None"
            )
        source_prior = np.asarray(counts, dtype=np.float64)
    target = class_counts.check_prior(
        "target_prior", target_prior, num_classes, class_names=class_names
    )
    source = class_counts.check_prior(
        "source_prior", source_prior, num_classes, class_names=class_names
    )
    shift = np.log(target) - np.log(source)
    return shift.astype(np.float32), target.tolist(), source.tolist()


def softmax_scale(model: keras.Model, scale: float | None = None) -> float:
    """Returns the scale s with which softmax(s z) of a model's scores z are its probabilities.

    Args:
        model: A model that gives scores.
        scale: The scale, if you know it. Defaults to that of the model's `CosineDense`, or of the
            loss that it is compiled with, or 1 for a model without either.

    Raises:
        ValueError: if head and loss disagree, or the model gives cosines of an unknown scale.
    """
    if scale is not None:
        class_counts.check_range("scale", scale, 0, 1e6, open_low=True)
        return float(scale)
    heads = cosine_heads(model)
    losses = keras.tree.flatten(getattr(model, "loss", None))
    of_heads, of_losses = (
        [float(s) for each in some if (s := getattr(each, "scale", None)) is not None]
        for some in (heads, losses)
    )
    if len({*of_heads, *of_losses}) > 1:
        raise ValueError(
            "Heads and losses must have one scale; pass `scale=` to choose. Received: heads have "
            f"scale={of_heads}, losses have scale={of_losses}"
        )
    found = next(iter([*of_heads, *of_losses]), None)
    if found is None and heads:
        raise ValueError(
            "The model gives cosines, and neither its head nor a loss that it is compiled with has "
            "a scale, so the softmax scale is unknown: pass `scale=`, as used by the loss."
        )
    return 1.0 if found is None else found


def with_probabilities(model: keras.Model, *, scale: float | None = None) -> keras.Model:
    """Returns a model with the same weights that gives probabilities, softmax(s z).

    They are the probabilities that the loss has trained: for the class frequencies that it has
    seen, and after margins or re-weighting for no particular ones. See `export_saved_model` for a
    shift to other frequencies.

    Args:
        model: A model that gives scores z, `(batch, num_classes)`.
        scale: s > 0; see `softmax_scale`.

    Returns:
        A Keras model, which can be saved, exported and served like any other.

    Raises:
        ValueError: for a model that gives probabilities already, one with several outputs, or an
            unknown scale.

    Example:

    ```python
    model.compile("sgd", loss=keras_ldam.LDAM(counts))
    model.fit(x, y)
    probabilities = keras_ldam.with_probabilities(model).predict(x_test)
    ```
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a Keras model. Received: {model!r}")
    if gives_probabilities(model):
        raise ValueError("The model ends in probabilities already.")
    softmax = ScaledSoftmax(softmax_scale(model, scale), name="probabilities")
    outputs = getattr(model, "outputs", None)
    if not outputs:
        return keras.Sequential([model, softmax])
    if len(outputs) > 1:
        raise ValueError(
            "The model must have one output; select it: keras.Model(model.inputs, "
            f"model.outputs[0]). Received: {len(outputs)} outputs"
        )
    return keras.Model(model.inputs, softmax(outputs[0]), name=model.name)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _column_or_vector(labels: Sequence[int] | np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _check(
    scores: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    weights: Sequence[float] | np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores = np.asarray(scores, dtype=np.float64)
    labels = _column_or_vector(labels)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=np.float64)
    if scores.ndim != 2 or not len(scores) or not labels.shape == weights.shape == (len(scores),):
        raise ValueError(
            "Scores must have shape (n, num_classes), `labels` and `weights` shape (n,), with at "
            f"least one example. Received: shapes {scores.shape}, {labels.shape} and "
            f"{weights.shape}"
        )
    check_labels(labels, scores.shape[1])
    return scores, labels.astype(np.int64), weights
