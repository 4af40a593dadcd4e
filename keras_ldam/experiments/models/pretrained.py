"""A body that was trained before, from a file or a folder, with a head from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from keras_ldam import extras, files, keras_internals
from keras_ldam.experiments import saved_models
from keras_ldam.experiments.config import Config
from keras_ldam.layers import CosineDense, Probabilities, inputs_of

_DTYPES = {"images": "uint8", "texts": "string", "sequences": "int32", "vectors": "float32"}
_NAMES = {"images": "image", "texts": "text", "sequences": "words", "vectors": "features"}


def holds_weights_only(path: str) -> bool:
    """Whether a path is that of an HDF5 file with the weights of a model, and not the model."""
    import h5py

    if not Path(path).is_file() or not h5py.is_hdf5(path):
        return False
    with h5py.File(path) as file:
        return "model_config" not in file.attrs


def pretrained(
    config: Config, *, form: str, shape: tuple[int | None, ...], head: keras.layers.Layer
) -> keras.Model:
    """Builds a model of a pretrained body and a new head.

    Of a saved model the body is what comes before its last layer, if that is a `Dense` or
    `CosineDense` of class scores: one without another activation than a softmax or a sigmoid.
    Otherwise it is the whole model. Features of places, `(batch, …, features)`, are averaged.

    Args:
        config: Gives `pretrained`, a `.keras` or `.h5` file or a preset folder of keras-hub,
            `frozen`, and the length of a text in tokens for a preset.
        form: What the examples are: `"images"`, uint8 pixels of 0 to 255, `"texts"`, strings,
            `"sequences"` of whole numbers, or `"vectors"`.
        shape: Shape of one example.
        head: The last layer.

    Returns:
        A model from examples to the head's output.

    Raises:
        ValueError: if there is no such file or folder, it holds no model, or one that does not take
            such examples.
    """
    path = Path(config.pretrained)
    if not path.exists():
        raise ValueError(
            "`pretrained` must be an existing file, .keras or .h5, or a preset folder of "
            f"keras-hub. Received: pretrained={config.pretrained!r}"
        )
    if form not in _DTYPES:
        raise ValueError(
            f"`pretrained` is for {', '.join(_DTYPES)}, and the examples are {form}. Received: "
            f"pretrained={config.pretrained!r}"
        )
    inputs = keras.Input(shape, dtype=_DTYPES[form], name=_NAMES[form])
    if path.is_dir():
        body, x, pooling = _preset(path, config, form, inputs)
        said = f"backbone {body.name!r}"
    else:
        body, left_out = without_head(_saved(path))
        body.name = "body"
        x, pooling = _fitted(body, inputs, form, path), {}
        said = "the whole model" if left_out is None else f"all before its head {left_out!r}"
    body.trainable = True  # Whatever was frozen when it was saved; see `freeze`.
    features = _pooled(body(x), path, **pooling)
    print(f"pretrained {path}: {said}, {features.shape[-1]} features", flush=True)
    return keras.Model(inputs, head(features), name="pretrained")


def freeze(model: keras.Model, head: keras.layers.Layer, frozen: str) -> None:
    """Freezes a pretrained model's body, its batch normalization alone, or nothing.

    Frozen batch normalization keeps its statistics, and uses them in training too.

    Args:
        model: A model that ends in the head.
        head: Its last layer, which is always trained.
        frozen: `"body"`, `"batch_norm"` or `"none"`.
    """
    for layer in keras_internals.layers_of(model):
        if layer is not head and (
            (frozen == "body" and not isinstance(layer, keras.Model))
            or (frozen == "batch_norm" and isinstance(layer, keras.layers.BatchNormalization))
        ):
            layer.trainable = False


def without_head(model: keras.Model) -> tuple[keras.Model, str | None]:
    """Returns a model up to the features of its head, and the head's name, None if it has none."""
    tensor = model.outputs[0]
    operation = keras_internals.operation_of(tensor)
    while _is_activation(operation):
        (tensor,) = keras_internals.arguments_of(tensor)
        operation = keras_internals.operation_of(tensor)
    name = None
    if isinstance(operation, keras.Model):
        inner, name = without_head(operation)
        if name is not None:
            tensor = inner(*keras_internals.arguments_of(tensor))
    elif isinstance(operation, (keras.layers.Dense, CosineDense)) and _gives_scores(operation):
        name = operation.name
        (tensor,) = keras_internals.arguments_of(tensor)
    if name is None:
        return model, None
    return keras.Model(inputs_of(model), tensor, name=model.name), name


def _is_activation(operation):
    activation = (keras.layers.Activation, keras.layers.Softmax, Probabilities)
    return isinstance(operation, activation) and _gives_scores(operation)


def _gives_scores(layer):
    activation = getattr(layer, "activation", None)
    return getattr(activation, "__name__", activation) in (None, "linear", "softmax", "sigmoid")


def _saved(path):
    """The model of a file."""
    received = f"Received: {path}"
    if holds_weights_only(path):
        raise ValueError(
            "`pretrained` must hold a whole model, as model.save writes it, and not its weights "
            f"alone, except for network resnet50. {received}"
        )
    try:
        model = saved_models.load_model(path, compile=False)
    except Exception as error:  # Keras, h5py, zipfile and layers have their own.
        reason = files.reason(error)
        raise ValueError(
            f"`pretrained` must hold a Keras model, .keras or .h5. {received}: {reason}"
        ) from None
    inputs, outputs = (getattr(model, name, None) or () for name in ("inputs", "outputs"))
    if len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(
            "`pretrained` must hold a functional or sequential model with one input and one "
            f"output. {received}: {type(model).__name__} with {len(inputs)} inputs and "
            f"{len(outputs)} outputs"
        )
    return model


def _fitted(body, inputs, form, path):
    """The inputs as the body of a file takes them."""
    taken = body.inputs[0]
    shape, given = tuple(taken.shape[1:]), tuple(inputs.shape[1:])
    strings = taken.dtype == "string"
    fits = len(shape) == len(given) and all(
        a in (b, None) for a, b in zip(shape, given, strict=True)
    )
    if form == "texts" and strings and shape == (1,):
        return keras.ops.expand_dims(inputs, -1)
    if strings != (form == "texts") or not fits:
        hint = ""
        if form == "texts" and not strings:
            hint = "; put its TextVectorization, or what makes ids of texts, before it"
        elif form == "images" and len(shape) == 3 and shape[0] == shape[1] and shape[0]:
            hint = f"; pass image_size={shape[0]} for images that are read from disk"
        raise ValueError(
            f"`pretrained` must take {form} of shape {given}, {inputs.dtype}{hint}. Received: "
            f"{path}, which takes {taken.dtype} of shape {shape}"
        )
    return inputs if taken.dtype == inputs.dtype else keras.ops.cast(inputs, taken.dtype)


def _pooled(features, path, **kwargs):
    rank = len(getattr(features, "shape", ()))
    if rank not in (2, 3, 4) or not isinstance(features.shape[-1], int):
        shapes = keras.tree.map_structure(lambda tensor: tuple(tensor.shape), features)
        raise ValueError(
            "`pretrained` must give features (batch, …, features). Received: "
            f"{path}, which gives {shapes}"
        )
    layers = keras.layers
    if rank == 4:
        return layers.GlobalAveragePooling2D(name="pooled")(features)
    if rank == 3:
        return layers.GlobalAveragePooling1D(name="pooled")(features, **kwargs)
    return features


# ----------------------------------------------------------------------------- presets of keras-hub


@keras.saving.register_keras_serializable(package="keras_ldam")
class TextPreprocessor(keras.layers.Layer):
    """Makes tokens of strings by a preprocessor of keras-hub, inside of a model.

    Args:
        preprocessor: A `keras_hub.models.TextClassifierPreprocessor`.
        names: Names of what it gives, such as `token_ids`.
        **kwargs: Further arguments of `keras.layers.Layer`.

    Call arguments:
        texts: Strings, shape `(batch,)`.

    Returns:
        A dictionary of whole numbers, each `(batch, preprocessor.sequence_length)`.
    """

    def __init__(self, preprocessor: Any, names: list[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if isinstance(preprocessor, dict):
            preprocessor = keras.saving.deserialize_keras_object(preprocessor)
        self.preprocessor, self.names = preprocessor, list(names)
        self.supports_jit = False
        self.built = True

    def call(self, texts: Any) -> Any:
        """Returns the tokens, and what else the body takes."""
        found = self.preprocessor(texts)
        return {name: keras.ops.cast(found[name], "int32") for name in self.names}

    def compute_output_spec(self, texts: Any) -> dict[str, Any]:
        """Returns what `call` does, symbolically."""
        shape = (texts.shape[0], self.preprocessor.sequence_length)
        return {name: keras.KerasTensor(shape, "int32") for name in self.names}

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal layer."""
        preprocessor = keras.saving.serialize_keras_object(self.preprocessor)
        return {**super().get_config(), "preprocessor": preprocessor, "names": self.names}


def _preset(path, config, form, inputs):
    """Backbone, what it is called with, and how its features are averaged."""
    with extras.needed("hub", by="a preset folder of keras-hub"):
        import keras_hub
    models = keras_hub.models
    backbone = _read(path, models.Backbone.from_preset)
    taken = backbone.input
    texts = isinstance(taken, dict) and "token_ids" in taken
    images = not isinstance(taken, (dict, list)) and len(taken.shape) == 4
    if form != {(True, False): "texts", (False, True): "images"}.get((texts, images)):
        kind = "texts" if texts else "images" if images else "neither texts nor images"
        raise ValueError(
            f"`pretrained` must be of a network for {form}. Received: {path}, a "
            f"{type(backbone).__name__} for {kind}"
        )
    if images:
        x = _fitted(backbone, inputs, form, path)
        scaling = _scaling(path, keras_hub)
        return backbone, x if scaling is None else scaling(x), {}
    length = min(config.max_tokens, getattr(backbone, "max_sequence_length", config.max_tokens))
    preprocessor = _read(path, models.TextClassifierPreprocessor.from_preset, length)
    tokens = TextPreprocessor(preprocessor, sorted(taken), name="preprocessor")(inputs)
    # Of several outputs, such as BERT's pooled one, which pretraining leaves rough, the states.
    if isinstance(backbone.output, dict):
        states = backbone.output["sequence_output"]
        backbone = keras.Model(taken, states, name=backbone.name)
    return backbone, tokens, {"mask": tokens["padding_mask"]}


def _scaling(path, keras_hub):
    """The scale of the pixels that belongs to a preset, None if it says nothing of them."""
    try:
        converter = keras_hub.layers.ImageConverter.from_preset(str(path))
    except Exception:  # There is no such part.
        return None
    scale = 1.0 if converter.scale is None else converter.scale
    offset = 0.0 if converter.offset is None else converter.offset
    return keras.layers.Rescaling(scale, offset, name="scaled_pixels")


def _read(path, reader, *length):
    try:
        with saved_models.bounded(path):
            return reader(str(path), **({"sequence_length": length[0]} if length else {}))
    except Exception as error:  # Files that are missing, and classes without such a part.
        reason = files.reason(error)
        what = "tokenizer and backbone" if length else "a backbone"
        raise ValueError(
            f"`pretrained` must be a preset folder of keras-hub with {what}. Received: {path}: "
            f"{reason}"
        ) from None
