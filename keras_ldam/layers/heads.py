"""What kind of scores a model ends in."""

from __future__ import annotations

from typing import Any

import keras

from keras_ldam import keras_internals
from keras_ldam.layers.cosine_dense import CosineDense
from keras_ldam.layers.probabilities import ACTIVATIONS, Probabilities


def cosine_heads(model: keras.Model) -> list[CosineDense]:
    """Returns the `CosineDense` layers of a model, and of the models that it is made of."""
    layers = keras_internals.layers_of(model)
    return [layer for layer in layers if isinstance(layer, CosineDense)]


_LINEAR = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)


def linear_heads(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the `Dense` and convolutions that the outputs of a functional model come out of."""
    found = []
    for output in getattr(model, "outputs", None) or ():
        operation = keras_internals.operation_of(output)
        if isinstance(operation, keras.Model):
            found += linear_heads(operation)
        elif type(operation) in _LINEAR:
            found.append(operation)
    return found


def gives_probabilities(model: keras.Model) -> bool:
    """Whether an output of a functional model comes out of a softmax or a sigmoid."""
    return any(map(applied_activation, getattr(model, "outputs", None) or ()))


def outputs_of(model: keras.Model, loss: Any) -> list[tuple[Any, Any, Any]]:
    """Returns name, symbolic tensor and loss of each output of a functional model.

    Args:
        model: Any model; there is nothing to return of one without a graph.
        loss: What it is compiled with. An output has no loss where there is none for it alone.
    """
    tensors = list(getattr(model, "outputs", None) or ())
    if not tensors:
        return []
    names = list(getattr(model, "output_names", ()))  # A `Sequential` has none.
    structure: Any = model.output if names else None
    by_name = isinstance(structure, dict) and len(structure) == len(tensors)
    if by_name:
        names, tensors = list(structure), list(structure.values())
    if len(names) != len(tensors):
        names = [model.name] if len(tensors) == 1 else list(range(len(tensors)))
    if len(tensors) == 1:
        losses = [each for each in keras.tree.flatten(loss) if each is not None]
    elif isinstance(loss, dict):
        losses = [loss.get(name) for name in names]
    elif isinstance(loss, (list, tuple)):
        losses = list(loss)
        if by_name and len(losses) == len(tensors):  # Keras takes them in the order of the names.
            losses = [losses[sorted(names).index(name)] for name in names]
    else:
        losses = [loss] * len(tensors)
    if len(losses) != len(tensors):
        losses = [None] * len(tensors)
    return list(zip(names, tensors, losses, strict=True))


def inputs_of(model: keras.Model) -> Any:
    """Returns the symbolic inputs of a model in the form that it is called with.

    A new model of `Model.inputs`, a list, would warn when it is called with an array, and take the
    arrays of a dictionary in the order of their names.
    """
    return model.inputs[0] if len(model.inputs) == 1 else model.input


def applied_activation(output: Any) -> str | None:
    """Returns `"softmax"` or `"sigmoid"`, whichever an output comes out of, or None."""
    operation = keras_internals.operation_of(output)
    if isinstance(operation, keras.Model):
        inner = getattr(operation, "outputs", None) or ()
        place = keras_internals.place_of(output)
        return applied_activation(inner[place]) if place < len(inner) else None
    activation = getattr(operation, "activation", None)
    if isinstance(operation, keras.layers.Activation) and activation is keras.activations.linear:
        return applied_activation(keras_internals.arguments_of(output)[0])  # A cast, to float32.
    if isinstance(operation, keras.layers.TimeDistributed):
        operation = operation.layer
    if isinstance(operation, Probabilities):
        return operation.activation
    last = getattr(operation, "activation", None) or operation
    name = getattr(last, "__name__", type(last).__name__).lower()
    return name if name in ACTIVATIONS else None
