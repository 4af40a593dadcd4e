"""Guards: what keeps a margin loss from working in a network, said with the line to change.

The limits come from the runs of `benchmarks/networks.py`, whose JSON file holds what they measure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_ldam import keras_internals
from keras_ldam.layers import (
    CosineDense,
    cosine_heads,
    gives_probabilities,
    linear_heads,
    outputs_of,
)
from keras_ldam.losses import ClassWeightedLoss, LogitAdjusted, MarginLoss
from keras_ldam.metrics import ClassErrors

ONE_CLASS = 0.999
"""From this share on predictions are one class."""
FLAT = 0.02
"""Cosines that vary less than this from example to example do not depend on it."""
ONE_WAY = 0.995
"""Length of the mean of unit features from which on they all point the same way."""
ZERO = 0.1
"""Share of examples whose features may be zero."""
REACHED = 0.5
"""Share of the smallest margin that a tenth of the training examples should have reached."""


class Sums:
    """What guards keep of a pass over examples, besides labels, guesses and margins.

    An example weighs 1/n of its class, so that nearly equal examples of a frequent class do not
    look like a network that gives the same for all.

    Args:
        counts: Training examples per class n, shape `(num_classes,)`.
    """

    def __init__(self, counts: np.ndarray) -> None:
        self._weights = 1.0 / counts
        self.n = self.broken = self.zero = 0
        self.largest = 0.0
        self._weight = self._alive = 0.0
        self._scores: Any = 0.0
        self._squares: Any = 0.0
        self._directions: Any = 0.0

    def add(
        self, scores: np.ndarray, labels: np.ndarray, features: np.ndarray | None = None
    ) -> None:
        """Adds a batch.

        Args:
            scores: Shape `(batch, num_classes)`.
            labels: Class of each example, shape `(batch,)`.
            features: What the head is given, shape `(batch, features)`; None if unknown.
        """
        if not len(labels):  # The loss ignores all of the batch.
            return
        scores, weights = np.asarray(scores, np.float64), self._weights[labels]
        finite = np.isfinite(scores).all(axis=1)
        if features is not None:
            features = np.asarray(features, np.float64).reshape(len(scores), -1)
            finite &= np.isfinite(features).all(axis=1)
            lengths = np.linalg.norm(features, axis=1)
            alive = finite & (lengths > 1e-6)
            self.zero += int(np.sum(finite & ~alive))
            self._alive += weights[alive].sum()
            self._directions += (weights[alive] / lengths[alive]) @ features[alive]
        self.n += len(scores)
        self.broken += int(np.sum(~finite))
        scores, weights = scores[finite], weights[finite]
        self.largest = max(self.largest, float(np.abs(scores).max(initial=0.0)))
        self._weight += weights.sum()
        self._scores += weights @ scores
        self._squares += weights @ np.square(scores)

    @property
    def spread(self) -> float:
        """Standard deviation of a class's scores over the examples, mean over classes."""
        variance = self._squares / self._weight - np.square(self._scores / self._weight)
        return float(np.sqrt(np.maximum(variance, 0.0)).mean())

    @property
    def resultant(self) -> float:
        """Length of the mean of the features, each scaled to length 1; 1 where all agree."""
        return float(np.linalg.norm(self._directions / self._alive)) if self._alive else 0.0


def of_layers(
    model: Any, losses: Sequence[ClassWeightedLoss], *, compiled: Any = None
) -> list[str]:
    """Returns what is wrong with a model's layers, under the losses it is trained with.

    Args:
        model: A model of any kind.
        losses: The losses that it is trained with.
        compiled: What it is compiled with, which says of several outputs which loss each has. A
            loss that it does not hold may be that of any.
    """
    margin = next((loss for loss in losses if isinstance(loss, MarginLoss)), None)
    found = []
    if margin is not None and (last := _logits(model, len(margin.counts))):
        layer, units = last
        found.append(
            f"{type(margin).__name__} measures margins between cosines, but the model ends in "
            f"{layer}({units}), whose logits satisfy any margin by growing: replace it by "
            f"keras_ldam.CosineDense({units})."
        )
    for loss in losses:
        plain = isinstance(loss, LogitAdjusted) and loss.tau and loss.scale == 1
        if plain and _takes_cosines(loss, model, compiled):
            found.append(
                f"{type(loss).__name__} adds log frequencies to cosines, which span only 2 and "
                "cannot make up for them: give the loss a scale, such as scale=25."
            )
    for head in (*cosine_heads(model), *linear_heads(model)):
        names = _normalized_noise(head)
        if names:
            found.append(
                f"{names[1]!r}, a BatchNormalization before the head, follows {names[0]!r}, a "
                "Dropout: its statistics are those of features with dropout, and are wrong without "
                "it; put BatchNormalization before Dropout."
            )
    return found


def of_corrections(losses: Sequence[ClassWeightedLoss]) -> list[str]:
    """Returns a sentence for each loss that corrects for the frequencies before `DRW` does."""
    return [
        f"{type(loss).__name__} with tau={loss.tau:g} corrects for the class frequencies, and DRW "
        "would do so once more, so rare classes count twice: leave out DRW, or set tau=0."
        for loss in losses
        if loss.tau
    ]


def of_accumulation(model: Any, losses: Sequence[ClassWeightedLoss]) -> list[str]:
    """Returns a sentence where the mean of small batches gives rare classes less than their weight.

    Args:
        model: A compiled model.
        losses: Its losses that have class weights.
    """
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    batches = getattr(optimizer, "gradient_accumulation_steps", None)
    if not batches or all(loss.reduction != "mean_with_sample_weight" for loss in losses):
        return []
    return [
        f"The optimizer averages the gradients of {batches} batches, each of which divides by the "
        "sum of its own weights, so rare classes count less than their weight: give the loss "
        'reduction="mean_over_data".'
    ]


def not_finite(model: Any, logs: Mapping[str, Any]) -> str | None:
    """Returns which number of an epoch is not finite, the loss or the weights of a layer."""
    if not np.isfinite(float(logs.get("loss", 0.0))):
        return f"the loss is {float(logs['loss'])}"
    # A ReLU that TensorFlow fuses with the layer before it makes zeros of NaN.
    for variable in model.trainable_variables:
        total = keras.ops.sum(keras.ops.cast(variable, "float32"))  # In float16 it overflows.
        if not np.isfinite(keras.ops.convert_to_numpy(total)):
            layer = variable.path.split("/")[-2:][0]
            return f"weights of {layer!r} are not finite, though the loss is"
    return None


def predicts_one_class(model: Any) -> bool:
    """Whether all predictions that a model's `ClassErrors` saw last were one class."""
    found = [
        metric.predicts_one_class()
        for outer in getattr(model, "metrics", ())
        for metric in getattr(outer, "metrics", [outer])
        if isinstance(metric, ClassErrors)
    ]
    return bool(found) and all(found)


def of_pass(
    labels: np.ndarray,
    guesses: np.ndarray,
    margins: np.ndarray,
    sums: Sums,
    *,
    loss: Any = None,
    head: CosineDense | None = None,
) -> list[str]:
    """Returns what is wrong with a model's scores on training examples, at the end of training.

    Args:
        labels: Class of each example, shape `(n,)`.
        guesses: Predicted classes, shape `(n,)`.
        margins: Label's score minus the best other one, shape `(n,)`.
        sums: What was added of the same examples.
        loss: The loss that the model is trained with, if it is known.
        head: The layer that the scores come out of, if it gives cosines.
    """
    if sums.broken:
        return [
            f"Features or scores of {sums.broken:,} of {sums.n:,} examples are not finite: look "
            "for NaN in the examples, lower the learning rate, and let "
            "keras.callbacks.TerminateOnNaN() stop training."
        ]
    found = []
    if sums.zero >= ZERO * sums.n:
        found.append(
            f"All features before the head are zero for {sums.zero:,} of {sums.n:,} examples, "
            "which get the same scores whatever they are: lower the loss's `scale` or the "
            "learning rate, or use an activation that is not zero for all negative numbers, such "
            "as 'leaky_relu'."
        )
    demands = isinstance(loss, MarginLoss) and loss.max_margin > 0
    if demands and sums.largest > 1.01:
        units = len(loss.counts)
        return [
            *found,
            f"{type(loss).__name__} measures margins between cosines, but scores reach "
            f"{sums.largest:.3g}: make keras_ldam.CosineDense({units}) the last layer.",
        ]
    # Examples of one class may well be alike.
    cosines = head is not None and len(np.unique(labels)) > 1
    one_way = cosines and sums.resultant >= ONE_WAY
    one_class = _one_class(labels, guesses)
    if one_class is not None or one_way or (cosines and sums.spread < FLAT):
        if one_class is not None:
            what = f"All {len(labels):,} predictions are class {one_class}"
        elif one_way:
            what = "The features of all examples point the same way"
        else:
            what = f"Cosines hardly depend on the example (standard deviation {sums.spread:.2g})"
        return [*found, f"{what}: {_to_start(loss, head)}."]
    if demands and head is not None:
        reached, least = float(np.quantile(margins, 0.9)), float(np.min(loss.margins))
        if reached < REACHED * least:
            found.append(
                f"The margins are out of reach: nine of ten examples are less than {reached:.2g} "
                f"ahead of the best other class, and the smallest margin is {least:.2g}. Train "
                "longer or lower `max_margin`; where features are wide and have zero mean, put "
                "keras.layers.Dense(64, 'relu') before the head."
            )
    return found


def _one_class(labels: np.ndarray, guesses: np.ndarray) -> int | None:
    """The class that is predicted for all, if there is one, and there are examples of others."""
    guess = int(np.bincount(guesses).argmax())
    others = labels != guess
    same = guesses == guess
    # Where one class has nearly all examples, so may good predictions.
    if others.any() and min(same.mean(), same[others].mean()) >= ONE_CLASS:
        return guess
    return None


def _to_start(loss: Any, head: CosineDense | None) -> str:
    lines = []
    if head is not None and not head.use_bias:
        lines.append(f"CosineDense({head.units}) with its bias")
    if isinstance(loss, MarginLoss) and not getattr(loss, "gradual", False):
        lines.append("LDAM(counts) with margins that grow (gradual=True)")
    lines = [f"use {' and '.join(lines)}"] if lines else []
    return ", or ".join([*lines, "train longer before class weights come on"])


def _logits(model: Any, num_classes: int) -> tuple[str, int] | None:
    """Kind and units of the linear layer that a model's scores come out of, if one is."""
    outputs = getattr(model, "outputs", None)
    if outputs is None:
        # A subclass has no graph: a Dense of this size and no CosineDense is all there is to see.
        layers = [] if cosine_heads(model) else keras_internals.layers_of(model)
        dense = [layer for layer in layers if type(layer) is keras.layers.Dense]
        found = any(layer.units == num_classes for layer in dense)
        return ("Dense", num_classes) if found else None
    heads = linear_heads(model)
    if len(outputs) == len(heads) == 1 and not gives_probabilities(model):
        (head,) = heads
        units = head.units if isinstance(head, keras.layers.Dense) else head.filters
        return type(head).__name__, int(units)
    return None


def _takes_cosines(loss: ClassWeightedLoss, model: Any, compiled: Any) -> bool:
    """Whether a loss gets what comes right out of a `CosineDense`; of a subclass, if it has one."""
    outputs = outputs_of(model, compiled)
    if not outputs:
        return bool(cosine_heads(model))
    own = [tensor for _, tensor, each in outputs if each is loss]
    return any(map(_is_cosine, own or [tensor for _, tensor, _ in outputs]))


def _is_cosine(output: Any) -> bool:
    end = keras_internals.operation_of(output)
    if isinstance(end, keras.Model):
        inner = getattr(end, "outputs", None)
        if not inner:
            return bool(cosine_heads(end))
        return _is_cosine(inner[keras_internals.place_of(output)])
    return isinstance(end, CosineDense)


def _normalized_noise(head: Any) -> tuple[str, str] | None:
    """Names of a dropout and of the batch normalization that follows it right before a head."""
    before = (layer for layer in _layers_before(head) if layer.weights or _drops(layer))
    normalization = next(before, None)
    dropout = next(before, None)
    if isinstance(normalization, keras.layers.BatchNormalization) and _drops(dropout):
        return dropout.name, normalization.name  # type: ignore[union-attr]
    return None


def _drops(layer: Any) -> bool:
    return isinstance(layer, keras.layers.Dropout) and layer.rate > 0


def _layers_before(layer: Any) -> Iterator[Any]:
    """The operations before a layer, last first, as long as each has one input."""
    while True:
        try:
            (tensor,) = keras.tree.flatten(layer.input)
        except (AttributeError, ValueError):  # Several inputs or calls, or no graph.
            return
        layer = keras_internals.operation_of(tensor)
        while isinstance(layer, keras.Model):
            layer = keras_internals.operation_of(layer.outputs[0])
        if isinstance(layer, keras.layers.InputLayer):
            return
        if isinstance(layer, keras.layers.Layer):
            yield layer
