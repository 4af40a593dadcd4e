"""What a trained model gives: scores, cosines or probabilities, of one class or of several."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_ldam import counts as class_counts
from keras_ldam import keras_internals
from keras_ldam.layers import (
    CosineDense,
    Probabilities,
    applied_activation,
    cosine_heads,
    gives_probabilities,
    inputs_of,
    outputs_of,
)
from keras_ldam.layers.probabilities import ACTIVATIONS
from keras_ldam.losses import ClassWeightedLoss

_SUM_TOLERANCE = 0.02
"""By how much probabilities in bfloat16 may miss the sum 1."""


@dataclasses.dataclass(frozen=True)
class Output:
    """One output of a model, and how its values are meant.

    Args:
        model: The model that has this output alone.
        loss: The loss that the output was compiled with.
        activation: `"softmax"` or `"sigmoid"`, which makes probabilities of the scores.
        applied: The activation that the output comes out of; None for scores.
        certain: Whether model, loss or caller have said so; otherwise values must tell.
        name: Name of the output among several; None where there is one.
        place: Place of the output among several.
    """

    model: keras.Model
    loss: Any
    activation: str
    applied: str | None
    certain: bool
    name: str | None = None
    place: int = 0

    @property
    def num_scores(self) -> int | None:
        """The length of the last axis, where the model knows it."""
        outputs = getattr(self.model, "outputs", None)
        return outputs[0].shape[-1] if outputs else None

    @property
    def decides_about_several(self) -> bool:
        """Whether there are several sigmoids."""
        return self.activation == "sigmoid" and self.num_scores not in (None, 1)

    @property
    def weighted_loss(self) -> ClassWeightedLoss | None:
        """The loss, if it is one of ours that knows the counts."""
        known = isinstance(self.loss, ClassWeightedLoss) and self.loss.counts is not None
        return self.loss if known else None

    def new_name(self, name: str) -> str:
        """Returns a name that no layer of the model has, like the given one."""
        taken = {layer.name for layer in keras_internals.layers_of(self.model)}
        while name in taken:
            name += "_"
        return name

    def with_layer(self, layer: keras.layers.Layer) -> keras.Model:
        """Returns the model with a layer after this output."""
        outputs = getattr(self.model, "outputs", None)
        if not outputs:
            return keras.Sequential([self.model, layer])
        return keras.Model(inputs_of(self.model), layer(outputs[0]), name=self.model.name)

    def seen(self, values: np.ndarray, *, several: bool) -> Output:
        """Returns what the output is, now that values of it are there.

        Args:
            values: Values of the output on examples, `(n, num_scores)`.
            several: Whether the labels are several decisions for each example.

        Raises:
            ValueError: for values that are not what model or caller say, that are not numbers, or
                that could be both scores and probabilities.
        """
        broken = np.count_nonzero(~np.isfinite(values).all(axis=-1))
        if broken:
            raise ValueError(
                f"The model must give finite numbers. Received: NaN or infinity for {broken} of "
                f"{len(values)} examples"
            )
        within = bool(np.all((values >= 0) & (values <= 1)))
        one = values.shape[-1] > 1 and within
        sums_to_one = one and bool(np.all(abs(values.sum(axis=-1) - 1) < _SUM_TOLERANCE))
        applied, activation = self.applied, self.activation
        if values.shape[-1] == 1:  # It was not built when it was read.
            applied, activation = applied and "sigmoid", "sigmoid"
        if applied is None and sums_to_one and not self.certain:
            applied = "softmax"
        elif applied is None and sums_to_one and len(values) > 1:
            raise ValueError(
                "The model was expected to give scores, and gives probabilities: they lie in "
                "[0, 1] and sum to 1. Pass `from_logits=False`, or give the model without its last "
                "activation."
            )
        elif applied is not None and not within:
            outside = values[(values < 0) | (values > 1)]
            raise ValueError(
                "The model was expected to give probabilities, and gives values outside [0, 1], "
                f"such as {outside.flat[0]:.4g}: pass `from_logits=True`."
            )
        elif applied == "softmax" and not sums_to_one:
            raise ValueError(
                "The model was expected to give probabilities of one class among "
                f"{values.shape[-1]}, and they do not sum to 1: pass `from_logits=True`, or "
                '`activation="sigmoid"` for a decision about each class.'
            )
        elif applied is None and within and not self.certain:
            raise ValueError(
                "The model gives values in [0, 1] only, which may be scores or probabilities: pass "
                "`from_logits=True` or `from_logits=False`."
            )
        if several:
            activation = "sigmoid"
        elif values.shape[-1] > 1:  # One class for each example, whatever it was trained as.
            activation = "softmax"
        return dataclasses.replace(self, applied=applied, activation=activation, certain=True)


def read(
    model: keras.Model,
    *,
    output: str | int | None = None,
    activation: str | None = None,
    from_logits: bool | None = None,
) -> Output:
    """Returns what an output of a model is, as far as model and loss tell.

    Arguments are those of `keras_ldam.adjust`.

    Raises:
        ValueError: for what is no model, an output that it has not, or one that must be chosen.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a Keras model. Received: {model!r}")
    if activation not in (None, *ACTIVATIONS):
        raise ValueError(
            f"`activation` must be None, {' or '.join(ACTIVATIONS)}. Received: {activation!r}"
        )
    model, loss, name, place = _select(model, output)
    outputs = getattr(model, "outputs", None)
    axis = getattr(loss, "axis", -1)
    if outputs and isinstance(axis, int) and axis not in (-1, len(outputs[0].shape) - 1):
        raise ValueError(
            "The output must have its classes on the last axis: put a `keras.layers.Permute` "
            f"behind it, and compile with a loss of that axis. Received: a loss with axis={axis}"
        )
    applied = applied_activation(outputs[0]) if outputs else None
    num_scores = outputs[0].shape[-1] if outputs else None
    certain = applied is not None or from_logits is not None
    if activation is None:
        binary = num_scores == 1 or _is_of_decisions(loss)
        activation = applied or ("sigmoid" if binary else "softmax")
    if outputs and not certain:
        operation = keras_internals.operation_of(next(iter(outputs)))
        linear = getattr(operation, "activation", None) is keras.activations.linear
        linear = linear and not isinstance(operation, keras.layers.Activation)
        certain = linear or isinstance(operation, CosineDense)
    if from_logits is None and applied is None and wants_probabilities(loss):
        applied, certain = activation, True
    elif from_logits is not None:
        applied = None if from_logits else (applied or activation)
    return Output(model, loss, activation, applied, certain, name, place)


def _select(
    model: keras.Model, output: str | int | None
) -> tuple[keras.Model, Any, str | None, int]:
    """The model with one output alone, its loss, and the name and place of the output."""
    loss = getattr(model, "loss", None)
    outputs = outputs_of(model, loss)
    if not outputs:
        if output is not None:
            raise ValueError(
                "`output` chooses among the outputs of a functional model. Received: "
                f"output={output!r} for {type(model).__name__} {model.name!r}"
            )
        losses = [each for each in keras.tree.flatten(loss) if each is not None]
        return model, losses[0] if len(losses) == 1 else None, None, 0
    names = [name for name, _, _ in outputs]
    if output is None:
        if len(outputs) == 1:
            return model, outputs[0][2], None, 0
        raise ValueError(
            f"The model has {len(outputs)} outputs: choose one with `output`; available: "
            f"{', '.join(map(str, names))}."
        )
    if isinstance(output, int) and not isinstance(output, bool) and 0 <= output < len(outputs):
        place = output
    elif output in names:
        place = names.index(output)
    else:
        raise ValueError(f"Unknown output {output!r}; available: {', '.join(map(str, names))}.")
    name, tensor, loss = outputs[place]
    return keras.Model(inputs_of(model), tensor, name=model.name), loss, name, place


def wants_probabilities(loss: Any) -> bool:
    """Whether a loss is a cross-entropy of Keras that was not told to expect scores."""
    loss = _resolved(loss)
    if callable(loss) and not isinstance(loss, keras.losses.Loss):
        names = ("sparse_categorical", "categorical", "binary", "categorical_focal", "binary_focal")
        return loss in [getattr(keras.losses, f"{name}_crossentropy") for name in names]
    return getattr(loss, "from_logits", None) is False


def _is_of_decisions(loss: Any) -> bool:
    """Whether a loss takes each score for a decision of its own."""
    loss = _resolved(loss)
    if getattr(loss, "multi_label", False):
        return True
    if getattr(loss, "form", None) == "sigmoid":
        return loss.counts is None  # Counts of classes: an example has one of them.
    if loss is keras.losses.binary_crossentropy:
        return True
    return isinstance(loss, (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy))


def _resolved(loss: Any) -> Any:
    try:
        return keras.losses.get(loss)
    except (TypeError, ValueError):  # Several losses, or a custom function.
        return None


def softmax_scale(model: keras.Model, scale: float | None = None, *, loss: Any = None) -> float:
    """Returns the scale s with which softmax(s z) of a model's scores z are its probabilities.

    Args:
        model: A model that gives scores.
        scale: The scale, if you know it. Defaults to that of the model's `CosineDense`, or of the
            loss that it is compiled with, or 1 for a model without either.
        loss: The loss, in place of the one that the model is compiled with.

    Raises:
        ValueError: if head and loss disagree, or the model gives cosines of an unknown scale.
    """
    if scale is not None:
        class_counts.check_range("scale", scale, 0, 1e6, open_low=True)
        return float(scale)
    heads = cosine_heads(model)
    losses = keras.tree.flatten(getattr(model, "loss", None) if loss is None else loss)
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


def split(model: keras.Model) -> tuple[keras.Model, Probabilities | None]:
    """Returns a model without the `Probabilities` at its end, and that layer, if it has one."""
    outputs = list(getattr(model, "outputs", None) or ())
    if len(outputs) == 1:
        last = keras_internals.operation_of(outputs[0])
        if isinstance(last, Probabilities):
            (scores,) = keras_internals.arguments_of(outputs[0])
            return keras.Model(inputs_of(model), scores, name=model.name), last
    return model, None


def with_probabilities(model: keras.Model, *, scale: float | None = None) -> keras.Model:
    """Returns a model with the same weights that gives probabilities, softmax(s z).

    Of a single score it makes a sigmoid, and of each score where the loss that the model is
    compiled with takes each for a decision of its own, such as Keras' `BinaryCrossentropy`.

    They are the probabilities that the loss has trained: for the class frequencies that it has
    seen, and after margins or re-weighting for no particular ones. `keras_ldam.adjust` makes those
    for other frequencies, fits what is unknown, and takes every kind of model.

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
    if len(getattr(model, "outputs", None) or ()) > 1:
        raise ValueError(
            "The model must have one output; `keras_ldam.adjust(model, output=…)` chooses one. "
            f"Received: {len(model.outputs)} outputs"
        )
    found = read(model, from_logits=True)
    if gives_probabilities(found.model) or wants_probabilities(found.loss):
        raise ValueError("The model ends in probabilities already.")
    name = found.new_name("probabilities")
    layer = Probabilities(softmax_scale(model, scale), activation=found.activation, name=name)
    return found.with_layer(layer)
