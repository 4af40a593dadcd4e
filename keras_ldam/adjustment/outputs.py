"""What a trained model gives, and how probabilities are made of it."""

from __future__ import annotations

import keras

from keras_ldam import counts as class_counts
from keras_ldam.layers import ScaledSoftmax, cosine_heads, gives_probabilities, inputs_of


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
    return keras.Model(inputs_of(model), softmax(outputs[0]), name=model.name)
