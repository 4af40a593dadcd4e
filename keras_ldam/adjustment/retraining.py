"""A second stage: the head of a trained model is trained anew, on balanced draws."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_ldam import counts as class_counts
from keras_ldam import files, keras_internals
from keras_ldam.adjustment.batches import batches_of, check_weights
from keras_ldam.adjustment.outputs import read, softmax_scale, wants_probabilities
from keras_ldam.labels import check_labels
from keras_ldam.layers import CosineDense, inputs_of
from keras_ldam.losses import CrossEntropy
from keras_ldam.sampling import EpochClock, balanced

HEAD_RATE, FACTOR_RATE = 0.01, 0.1
"""Learning rates at the start of the second stage; they fall to 0 by half a cosine."""


def retrain_head(
    model: keras.Model,
    data: Any,
    *,
    head: str | keras.layers.Layer | None = None,
    power: float | Callable[[int], float] = 1.0,
    epochs: int = 10,
    batch_size: int = 32,
    optimizer: Any = None,
    loss: Any = None,
    scale: float | None = None,
    seed: int = 0,
    from_means: bool = False,
    in_place: bool = False,
    verbose: int = 0,
) -> keras.Model:
    """Gives a trained model a fresh head, trained on class-balanced draws (cRT).

    Features that were learned from all examples as they come are often good, and only the head is
    biased to the frequent classes. So the head starts again from its own initializers, and the body
    does not change, not by a bit: batch normalization and dropout run as in `predict`. That makes
    the features of an example fixed, so they are computed once, and the second stage costs about
    one epoch of prediction. Random layers of augmentation within the model are off too; to train on
    several augmented views, augment in a dataset, and repeat it.

    For features alone memory must hold n · d float32 numbers.

    Args:
        model: A trained Keras model of any kind, with one output, or `head` named.
        data: Training examples with labels, whole numbers or one-hot: arrays `(x, y)` or
            `(x, y, sample_weight)`, or a `tf.data.Dataset`, `keras.utils.PyDataset` or other
            iterable of such batches, which is read once.
        head: The layer that gives the class scores, or its name. By default the `Dense` or
            `CosineDense` that is called last.
        power: Class j is drawn with P(j) ∝ n_j^(1 - power); see `keras_ldam.balanced`.
        epochs: Epochs of the second stage, each of n draws.
        batch_size: Examples in a step.
        optimizer: Any of Keras. Defaults to Adam with a learning rate that falls from 0.01 to 0 by
            half a cosine.
        loss: A loss of scores, before any softmax. Defaults to cross-entropy.
        scale: Scale s of the softmax over cosines, or of the sigmoid of one; by default that of the
            head, or of the loss that the model is compiled with.
        seed: Seed of the draws and of the head's initial weights.
        from_means: Whether the class vectors of a `CosineDense` start from the class means, as
            `start_from_means` sets them, and not from its initializers.
        in_place: Whether the given model gets the new head. By default a copy does, which needs
            that the model can be saved and loaded.
        verbose: As for `fit`.

    Returns:
        The model with the new head, not compiled if it is a copy.

    Raises:
        ValueError: if no head is found, or it does not give one row of scores for each example;
            for data without labels; or for a model that cannot be copied.

    Example:

    ```python
    model.fit(x, y, epochs=200)
    balanced_model = keras_ldam.retrain_head(model, (x, y))
    balanced_model.save("balanced.keras")
    ```

    References:
        Kang et al., 2020, "Decoupling Representation and Classifier for Long-Tailed Recognition",
        section 4.1, classifier re-training.
    """
    _check_loss(loss, scale)
    found = _Features(model, data, head, batch_size)
    # Scores: a softmax of its own comes back with the layer that the weights are put into.
    fresh = _again(found.head, seed=seed, activation="linear")
    if from_means:
        _check_for_means(found.head)
        fresh.build((None, found.values.shape[1]))
        _set_means(fresh, found.values, found.targets)
    stack = [fresh]
    if loss is None:
        stack, loss = [*stack, _scaling_of(model, found.head, scale)], CrossEntropy()
    layer = found.head if in_place else _same_layer(result := _copy(model), model, found.head)
    optimizer = optimizer or HEAD_RATE
    _fit(found, found.values, stack, power, epochs, batch_size, optimizer, loss, seed, verbose)
    layer.set_weights(fresh.get_weights())
    return model if in_place else result


def start_from_means(
    model: keras.Model,
    data: Any,
    *,
    head: str | keras.layers.Layer | None = None,
    batch_size: int = 32,
) -> None:
    """Sets the class vectors of a cosine head to the mean directions of the classes.

    For a pretrained body with a new head: instead of random directions, which a few examples take
    long to turn, each class starts where its examples lie. With u_i the features of example i,
    with their constant where the head has a bias, and w_i its sample weight,

    v_j = m_j / ‖m_j‖, m_j = Σ w_i u_i / ‖u_i‖ over the examples of class j.

    Of all directions it has the largest mean cosine with the class. The model changes in place, and
    nothing else in it does. Train it from there. Features are computed as in `predict`, and kept:
    memory must hold n · d float32 numbers.

    Args:
        model: A Keras model with a `CosineDense` of at least two classes as its head.
        data: Training examples with labels, in any form that `retrain_head` takes.
        head: The layer that gives the class scores, or its name. By default the last one called.
        batch_size: Of arrays, 8 · `batch_size` examples are predicted at a time.

    Raises:
        ValueError: as `retrain_head` does; for another head than `CosineDense`; or for a class
            without an example of a weight above 0.

    Example:

    ```python
    model = keras.Sequential([body, keras_ldam.CosineDense(num_classes)])
    keras_ldam.start_from_means(model, (x, y))
    model.compile("adam", loss=keras_ldam.LDAM(counts))
    ```

    References:
        Shi et al., 2024, "Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts", which
        starts cosine heads from means.
    """
    found = _Features(model, data, head, batch_size)
    _check_for_means(found.head)
    _set_means(found.head, found.values, found.targets)


def _check_for_means(head: Any) -> None:
    if not isinstance(head, CosineDense) or head.units < 2:
        raise ValueError(
            "Class means are vectors of a head `CosineDense(num_classes)` of at least two classes. "
            f"Received: {head.name!r}, of type {type(head).__name__}"
        )


def _set_means(head: CosineDense, values: np.ndarray, targets: tuple[np.ndarray, ...]) -> None:
    labels, *rest = targets
    weights = rest[0].reshape(-1) if rest else np.ones(len(labels))
    if head.use_bias:
        values = np.concatenate([values, np.full_like(values[:, :1], head.constant)], axis=1)
    values = _unit(values) * weights[:, None]
    if labels.ndim == 2 and labels.shape[1] == head.units:
        held, sums = weights @ labels, labels.T @ values
    else:  # An array of examples and classes could be larger than the features.
        check_labels(labels, head.units)
        labels = labels.reshape(-1).astype(np.int64)
        held = np.bincount(labels, weights, head.units)
        sums = np.zeros((head.units, values.shape[1]))
        np.add.at(sums, labels, values)
    empty = np.flatnonzero(held <= 0)
    if len(empty):
        raise ValueError(
            "`data` must hold an example of every class, of a weight above 0. Received: none of "
            f"class {empty[0]}"
        )
    vectors = _unit(sums).T
    head.set_weights([vectors[:-1], vectors[-1]] if head.use_bias else [vectors])


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)


def rescale_head(
    model: keras.Model,
    data: Any,
    *,
    head: str | keras.layers.Layer | None = None,
    power: float | Callable[[int], float] = 1.0,
    epochs: int = 10,
    batch_size: int = 32,
    optimizer: Any = None,
    loss: Any = None,
    scale: float | None = None,
    seed: int = 0,
    in_place: bool = False,
    verbose: int = 0,
) -> keras.Model:
    """Learns one factor for the scores of each class, on class-balanced draws (LWS).

    The milder second stage: z_j becomes f_j z_j, with everything else frozen, class vectors too. It
    has K numbers to learn, so that a few examples of a class do. The factors are multiplied into
    kernel and bias of the head, which must be a `Dense` without another function after it than a
    softmax: the model keeps its form. The cosines of a `CosineDense` do not depend on the lengths
    of its class vectors, so it has nothing to rescale.

    Arguments are those of `retrain_head`, as are the returned model and the errors; only the
    learning rate begins at 0.1.

    Example:

    ```python
    model.fit(x, y, epochs=200)
    balanced_model = keras_ldam.rescale_head(model, (x, y))
    ```

    References:
        Kang et al., 2020, "Decoupling Representation and Classifier for Long-Tailed Recognition",
        section 4.3, learnable weight scaling.
    """
    _check_loss(loss, scale)
    found = _Features(model, data, head, batch_size)
    if not isinstance(found.head, keras.layers.Dense) or found.head.units < 2:
        raise ValueError(
            "`rescale_head` needs a head `Dense(num_classes)` of at least two classes; "
            f"`retrain_head` takes others. Received: {found.head.name!r}, of type "
            f"{type(found.head).__name__}"
        )
    after = found.head.activation
    if after not in (keras.activations.linear, keras.activations.softmax):
        raise ValueError(
            "`rescale_head` needs a head without an activation, or with a softmax. Received: "
            f"{found.head.name!r}, with {getattr(after, '__name__', after)!r}"
        )
    layer = found.head if in_place else _same_layer(result := _copy(model), model, found.head)
    kernel, *bias = found.head.get_weights()
    scores = found.values @ kernel + (bias[0] if bias else 0)
    factors = _Factors(name="factors")
    stack: list[keras.layers.Layer] = [factors]
    if loss is None:
        stack, loss = [*stack, _scaling_of(model, found.head, scale)], CrossEntropy()
    optimizer = optimizer or FACTOR_RATE
    _fit(found, scores, stack, power, epochs, batch_size, optimizer, loss, seed, verbose)
    layer.set_weights([weights * factors.get_weights()[0] for weights in (kernel, *bias)])
    return model if in_place else result


def _check_loss(loss: Any, scale: float | None) -> None:
    if wants_probabilities(loss):
        raise ValueError(
            "`loss` must take scores: give a loss of keras_ldam, or one of Keras with "
            f"`from_logits=True`. Received: loss={loss!r}"
        )
    if loss is not None and scale is not None:
        raise ValueError(
            "`scale` must be None with a `loss`, which has its own. Received: "
            f"scale={scale!r}, loss={loss!r}"
        )


def _scaling_of(model: keras.Model, head: Any, scale: float | None) -> keras.layers.Layer:
    """Multiplies by the scale of the head's output; other outputs have their own."""
    outputs = getattr(model, "outputs", None) or ()
    structure: Any = model.output if len(outputs) > 1 else None
    names = list(structure) if isinstance(structure, dict) else range(len(outputs))
    for name in names if len(outputs) > 1 and len(names) == len(outputs) else ():
        tensor = outputs[name] if isinstance(name, int) else structure[name]
        alone = keras.Model(inputs_of(model), tensor)
        if any(layer is head for layer in keras_internals.layers_of(alone)):
            output = read(model, output=name)
            return keras.layers.Rescaling(softmax_scale(alone, scale, loss=output.loss))
    return keras.layers.Rescaling(softmax_scale(model, scale))


class _Factors(keras.layers.Layer):
    """Multiplies the scores of each class by a number."""

    def build(self, input_shape: Any) -> None:
        self.factors = self.add_weight(shape=(input_shape[-1],), initializer="ones")

    def call(self, inputs: Any) -> Any:
        return inputs * self.factors


class _Body(keras.Model):
    """A model that gives what its head is called with, what that answers, and its own output."""

    def __init__(self, model: keras.Model, heads: Sequence[keras.layers.Layer]):
        super().__init__(name="body")
        self.model, self.heads = model, tuple(heads)
        self.called: Any = None

    def call(self, inputs: Any) -> Any:
        with _recorded(self.heads) as calls:
            outputs = self.model(inputs, training=False)
        if not calls:
            raise ValueError(_NO_HEAD.format(received="none that the model calls"))
        self.called, features, scores = calls[-1]
        return features, scores, outputs


@contextlib.contextmanager
def _recorded(layers: Sequence[keras.layers.Layer]) -> Iterator[list[tuple[Any, Any, Any]]]:
    """Within it, calls of layers are listed: the layer, its inputs and its outputs."""
    calls: list[tuple[Any, Any, Any]] = []

    def recording(layer: Any, call: Any) -> Any:
        def recorded(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            outputs = call(inputs, *args, **kwargs)
            calls.append((layer, inputs, outputs))
            return outputs

        return recorded

    for layer in layers:
        layer.call = recording(layer, layer.call)
    try:
        yield calls
    finally:
        for layer in layers:
            del layer.call


_NO_HEAD = (
    "`head` must name the layer that gives the class scores, where no Dense or CosineDense comes "
    "last. Received: {received}"
)


class _Features:
    """The features of all examples, with labels and weights, and the head that takes them."""

    def __init__(self, model: Any, data: Any, head: Any, batch_size: int):
        if not isinstance(model, keras.Model):
            raise ValueError(f"`model` must be a Keras model. Received: {model!r}")
        class_counts.check_whole("batch_size", batch_size, 1)
        body = _Body(model, _candidates(model, head))
        kept: list[list[np.ndarray]] = [[], [], []]
        for batch in batches_of(data, int(batch_size)):
            x, y, weights = keras.utils.unpack_x_y_sample_weight(batch)
            if keras.tree.is_nested(y):
                raise ValueError(
                    "`data` must hold labels of the head, as (x, y) or (x, y, sample_weight). "
                    f"Received: labels in a {type(y).__name__}"
                )
            features, scores, outputs = body.predict_on_batch(x)
            if not kept[0]:
                _check_head(body.called, features, scores, outputs, chosen=head is not None)
            kept[0].append(np.asarray(features, dtype=np.float32))
            kept[1].append(np.asarray(y))
            if weights is not None:
                kept[2].append(np.asarray(weights))
        self.head = body.called
        self.values = np.concatenate(kept[0])
        self.targets = tuple(np.concatenate(part) for part in kept[1:] if part)
        broken = np.count_nonzero(~np.isfinite(self.values).all(axis=1))
        if broken:
            raise ValueError(
                "The features of `data` must be finite numbers. Received: NaN or infinity for "
                f"{broken} of {len(self.values)} examples"
            )
        if kept[2]:
            check_weights(self.targets[1])


def _candidates(model: keras.Model, head: Any) -> list[keras.layers.Layer]:
    layers = keras_internals.layers_of(model)
    if head is None:
        found = [one for one in layers if isinstance(one, (keras.layers.Dense, CosineDense))]
        received = f"a model without either, {model.name!r}"
    else:
        found = [one for one in layers if one is head or (one.name == head and one is not model)]
        received = f"head={head!r}; the layers are {', '.join(one.name for one in layers[1:20])}"
    if not found or (head is not None and len(found) > 1):
        raise ValueError(_NO_HEAD.format(received=received))
    return found


def _check_head(head: Any, features: Any, scores: Any, outputs: Any, *, chosen: bool) -> None:
    if getattr(features, "ndim", 0) != 2 or getattr(scores, "ndim", 0) != 2:
        raise ValueError(
            f"The head {head.name!r} must take one row of features for each example, and give one "
            f"of scores. Received: shapes {np.shape(features)} and {np.shape(scores)}"
        )
    if getattr(head, "lora_enabled", False):
        raise ValueError(
            f"The head {head.name!r} must not have LoRA. Received: lora_rank={head.lora_rank}"
        )
    if chosen:
        return
    if keras.tree.is_nested(outputs):
        raise ValueError(_NO_HEAD.format(received="a model with several outputs"))
    # A softmax, a sigmoid or a scale in between leave the order of the classes as it is.
    same = np.shape(outputs) == scores.shape and (
        np.argmax(outputs, axis=-1) == np.argmax(scores, axis=-1)
    )
    if not np.all(same):
        raise ValueError(
            _NO_HEAD.format(received=f"{head.name!r} called last, whose scores are not the output")
        )


def _again(layer: Any, *, seed: int, activation: str) -> Any:
    """A new layer like another one, with its initializers and no weights yet."""
    config = layer.get_config()
    config["trainable"] = True  # That of a frozen model is frozen.
    if "activation" in config:
        config["activation"] = activation
    for name, value in config.items():
        own = value.get("config", {}) if isinstance(value, dict) else {}
        if name.endswith("initializer") and own.get("seed", 0) is None:
            own["seed"] = seed
    return type(layer).from_config(config)


def _copy(model: keras.Model) -> keras.Model:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.keras"
        try:
            model.save(file)
            # Classes that are not registered are known here.
            classes = {type(each).__name__: type(each) for each in keras_internals.layers_of(model)}
            copy = keras.models.load_model(file, classes, compile=False, safe_mode=False)
            copied = [weights.shape for weights in copy.weights]
            if copied != [weights.shape for weights in model.weights]:
                raise ValueError("it comes back with other weights")
        except Exception as error:  # Whatever a class of the user's raises.
            reason = files.reason(error).split(". ")[0]
            raise ValueError(
                f"The model cannot be copied by `save` and `load_model` ({reason}): register its "
                "classes with `keras.saving.register_keras_serializable`, or pass `in_place=True` "
                "to change this one."
            ) from error
    return copy


def _same_layer(copy: keras.Model, model: keras.Model, layer: Any) -> Any:
    """The layer of a copy that stands where another one does in the model."""
    places = zip(keras_internals.layers_of(model), keras_internals.layers_of(copy), strict=True)
    return next(other for one, other in places if one is layer)


def _fit(
    found: _Features,
    inputs: np.ndarray,
    layers: Sequence[keras.layers.Layer],
    power: float | Callable[[int], float],
    epochs: int,
    batch_size: int,
    optimizer: Any,
    loss: Any,
    seed: int,
    verbose: int,
) -> None:
    class_counts.check_whole("epochs", epochs, 1)
    batches = balanced(
        (inputs, *found.targets), power=power, batch_size=batch_size, seed=seed, verbose=0
    )
    num_classes = max(2, found.head.compute_output_shape((1, found.values.shape[1]))[-1])
    check_labels(batches.labels, num_classes)
    if len(batches.counts) < num_classes:
        raise ValueError(
            f"`data` must have an example of each of the {num_classes} classes. Received: none of "
            f"class {len(batches.counts)}"
        )
    if isinstance(optimizer, float):
        rate = keras.optimizers.schedules.CosineDecay(optimizer, epochs * len(batches))
        optimizer = keras.optimizers.Adam(rate)
    trained = keras.Sequential([keras.Input(inputs.shape[1:]), *layers])
    trained.compile(optimizer, loss=loss)
    # Made within the first step, its variables have TensorFlow trace that twice.
    trained.optimizer.build(trained.trainable_variables)
    clock = EpochClock(batches)
    trained.fit(batches, epochs=int(epochs), shuffle=False, callbacks=[clock], verbose=verbose)
