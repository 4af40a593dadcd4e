"""The graphs that are served: from raw input to probabilities, in TensorFlow's ops.

AutoGraph is for what users pass, a tokenizer or `decode`; the rest has nothing to convert.
"""

from __future__ import annotations

import contextlib
import keyword
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_ldam.export import image_files
from keras_ldam.export.limits import MAX_IMAGE_PIXELS, MAX_TEXT_BYTES
from keras_ldam.keras_internals import layers_of
from keras_ldam.layers import Probabilities


def served(
    model: keras.Model,
    answer: Answer,
    *,
    tokenizer: Callable[[tf.Tensor], tf.Tensor] | None,
    image_shape: tuple[int | None, int | None, int] | None,
    resize: bool,
    decode: Callable[[tf.Tensor], tf.Tensor] | None,
    columns: Mapping[str, str] | None = None,
    encode: Callable[[Mapping[str, tf.Tensor]], tf.Tensor] | None = None,
) -> ServedText | ServedImages | ServedRows:
    """Returns the graphs for the kind of input that a model takes.

    Arguments are those of `export_saved_model`.

    Raises:
        ValueError: for a model of none of texts, images and rows, or arguments for another kind.
    """
    for_images = {"image_shape": image_shape, "resize": resize, "decode": decode}
    if columns is not None or encode is not None:
        columns = _checked_columns(columns)
        _check_not_given("rows", tokenizer=tokenizer, **for_images)
        if encode is None:
            limits = ["Refused: rows in which a number is missing."]
            return ServedRows(answer, columns, _stacking(columns, model), limits)
        return ServedRows(answer, columns, encode, _limits_of(encode))
    shape = tuple(model.inputs[0].shape[1:])
    if tokenizer is None and model.inputs[0].dtype == "string" and shape in ((), (1,)):
        # The model has its own tokenizer.
        tokenizer = tf.identity if not shape else (lambda text: tf.expand_dims(text, -1))
    if tokenizer is not None:
        _check_not_given("texts", **for_images)
        return ServedText(answer, tokenizer)
    shape = shape if image_shape is None else tuple(image_shape)
    if len(shape) != 3 or not isinstance(shape[2], int):
        raise ValueError(
            "Images must have shape (height, width, channels). For texts pass `tokenizer`, for "
            "vectors of numbers `columns`, for rows of a table `columns` and `encode` (from a "
            "dataset's file: return them from its function `serving`); export a model of other "
            "inputs as keras_ldam.with_probabilities(model).export(folder). "
            f"Received: input of shape {shape}"
        )
    height, width, channels = shape
    if decode is not None:
        _check_not_given("images that `decode` reads", resize=resize)
    if height is None or width is None:
        _check_not_given("images of any size", resize=resize)
    return ServedImages(answer, (height, width, channels), resize=resize, decode=decode)


_BLANK_SIDE = 224
"""Height and width of the image that stands in for none where any size is right."""


def _limits_of(reader: Any) -> list[str]:
    """Sentences for the model card on what a tokenizer or `encode` reads; others' have none."""
    return list(getattr(reader, "card_limits", ()))


def _check_not_given(kind: str, **arguments: Any) -> None:
    for name, value in arguments.items():
        if value not in (None, False):
            raise ValueError(f"`{name}` is not for a model of {kind}. Received: {name}={value}")


class Answer(tf.Module):
    """Maps the model's input to the outputs.

    Args:
        model: Model with scores z of shape `(batch, num_scores)`, or for each pixel
            `(batch, height, width, num_scores)`.
        layer: What makes probabilities of them.
        class_names: Name of each class.
    """

    def __init__(
        self, model: keras.Model, layer: Probabilities, class_names: Sequence[str]
    ) -> None:
        super().__init__()
        self._model = _Untracked(model)
        # The graph is to hold the weights and nothing else of the Keras model.
        self._weights = [variable.value for variable in model.variables]
        tables = (getattr(layer, "lookup_table", None) for layer in layers_of(model))
        self._tables = [table for table in tables if table is not None]
        self._layer, self._class_names = _Untracked(layer), class_names

    @tf.autograph.experimental.do_not_convert
    def __call__(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the outputs that `export_saved_model` lists."""
        # Convolutions fail on empty batches where oneDNN fuses them, so an empty one is given an
        # example, which is taken off again.
        known, shape = inputs.shape[1:], tf.shape(inputs)
        batch, missing, sides = shape[0], tf.cast(shape[:1] == 0, tf.int32), shape[1:]
        if known.rank == 3 and None in known:  # Images of any size, the example's too.
            sides = tf.where(sides == 0, _BLANK_SIDE, sides)
            inputs = tf.reshape(inputs, tf.concat([shape[:1], sides], axis=0))
        example = tf.zeros(tf.concat([missing, sides], axis=0), inputs.dtype)
        padded = tf.concat([inputs, example], axis=0)
        # Keras compiles a convolution by XLA where it does not know the number of channels.
        padded.set_shape([None, *known])
        outputs = keras.tree.flatten(self._model.it(padded, training=False))
        scores = tf.cast(outputs[0][:batch], tf.float32)
        logits = self._layer.it.logits(scores)
        several = self._layer.it.activation == "sigmoid" and scores.shape[-1] > 1
        if scores.shape[-1] == 1:  # One sigmoid is a softmax beside a zero.
            logits = tf.concat([tf.zeros_like(logits), logits], axis=-1)
        unknown = tf.math.is_nan(logits) | (logits == float("inf"))
        if not several:  # A softmax of nothing but -inf is NaN.
            highest = tf.reduce_max(logits, axis=-1, keepdims=True)
            unknown = unknown | (highest == -float("inf"))
        unknown = tf.reduce_any(unknown, axis=range(1, logits.shape.rank))
        with tf.control_dependencies([_refuse(unknown, "the scores are not finite numbers")]):
            logits = tf.identity(logits)
        index = tf.argmax(logits, axis=-1)
        answer = {
            "probabilities": tf.sigmoid(logits) if several else tf.nn.softmax(logits),
            "logits": logits,
            "class_index": index,
        }
        if index.shape.rank == 1:  # Not a name for each pixel.
            answer["label"] = tf.gather(tf.constant(self._class_names), index)
        if several:
            answer["present"] = logits > 0
        return answer


class _Untracked:
    """Holds an object that is not to be saved with its holder."""

    def __init__(self, it: Any) -> None:
        self.it = it


class ServedText(tf.Module):
    """Maps texts to answers.

    Args:
        answer: An `Answer`.
        tokenizer: Maps strings `(batch,)` to the model's input.
    """

    def __init__(self, answer: Answer, tokenizer: Callable[[tf.Tensor], tf.Tensor]) -> None:
        super().__init__()
        self._answer, self._tokenizer = answer, tokenizer
        self._refuses_wordless = False

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def serve(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Answers texts, strings `(batch,)`."""
        with tf.control_dependencies(_text_checks(text)):
            ids = self._tokenizer(tf.identity(text))
        self._refuses_wordless = ids.dtype.is_integer and ids.shape.rank == 2
        if not self._refuses_wordless:
            return self._answer(ids)
        wordless = ~tf.reduce_any(tf.not_equal(ids, 0), axis=1)
        with tf.control_dependencies([_refuse(wordless, "text has no words")]):
            return self._answer(tf.identity(ids))

    def signatures(self) -> dict[str, Any]:
        """Returns the functions to save, by the name that they are served under."""
        return {"serving_default": self.serve}

    def describe(self) -> dict[str, Any]:
        """Returns the facts of the input for `export.json`, once `serve` has been saved."""
        return {
            "input": "text",
            "max_text_bytes": MAX_TEXT_BYTES,
            "refuses_wordless": self._refuses_wordless,
            "limits": _limits_of(self._tokenizer),
        }


class ServedImages(tf.Module):
    """Maps pixels, or encoded files, to answers.

    Args:
        answer: An `Answer`.
        shape: Height, width and channels; None: any.
        resize: Whether files of another size are resized instead of refused.
        decode: Maps an encoded file to the model's input. Defaults to TensorFlow's decoder.
    """

    def __init__(
        self,
        answer: Callable[[tf.Tensor], Any],
        shape: tuple[int | None, int | None, int],
        *,
        resize: bool = False,
        decode: Callable[[tf.Tensor], tf.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self._answer, self._shape, self._resize = answer, shape, resize or decode is not None
        self._decode = decode or self._decoded
        if decode is not None:
            # Not within `map_fn`, after an error in which TensorFlow makes no more variables.
            file = tf.TensorSpec([], tf.string)
            image = tf.function(decode).get_concrete_function(file).structured_outputs
            fits = tf.is_tensor(image) and image.shape.is_compatible_with(shape)
            if not fits or image.dtype != tf.uint8:
                raise ValueError(f"`decode` must return uint8, shape {shape}. Received: {image}")

    def _serve(self, image: tf.Tensor) -> Any:
        wanted = [-1 if length is None else length for length in self._shape]
        message = f"images must be of height, width and channels {wanted}".replace("-1", "any")
        with tf.control_dependencies([_check_rank(image, 4, "images")]):
            size = tf.shape(_of_any_shape(image))[1:]
        right = tf.reduce_all((size == wanted) | (tf.constant(wanted) < 0))
        with tf.control_dependencies([tf.debugging.Assert(right, [f"{message}; received", size])]):
            return self._answer(tf.identity(image))

    def _serve_bytes(self, image_bytes: tf.Tensor) -> Any:
        def decode(contents: tf.Tensor) -> tf.Tensor:
            return self._decode(image_files.checked(contents))

        with tf.control_dependencies([_check_rank(image_bytes, 1, "image files")]):
            files = tf.shape(image_bytes)[:1]
        # Without a file the size of an image may be unknown.
        blank = tf.io.encode_png(tf.zeros([_BLANK_SIDE, _BLANK_SIDE, self._shape[2]], tf.uint8))
        blanks = tf.fill(tf.cast(files == 0, tf.int32), blank)
        wanted = None in self._shape
        images = tf.map_fn(
            decode,
            tf.concat([image_bytes, blanks], axis=0) if wanted else tf.identity(image_bytes),
            fn_output_signature=tf.TensorSpec(self._shape, tf.uint8),
        )
        return self._answer(images[: files[0]])

    def _decoded(self, contents: tf.Tensor) -> tf.Tensor:
        height, width, channels = self._shape
        image = image_files.decode(contents, channels)
        if height is None or width is None:
            return image
        if self._resize:
            image = tf.image.resize(image, (height, width), antialias=True)
            return tf.cast(tf.round(image), tf.uint8)
        size = tf.shape(image)[:2]
        message = f"image must be {height} pixels high and {width} wide; its size is"
        right = tf.reduce_all(size == (height, width))
        with tf.control_dependencies([tf.debugging.Assert(right, [message, size])]):
            image = tf.identity(image)
        image.set_shape((height, width, channels))
        return image

    def signatures(self) -> dict[str, Any]:
        """Returns the functions to save, by the name that they are served under."""
        pixels = tf.TensorSpec([None, *self._shape], tf.uint8, name="image")
        files = tf.TensorSpec([None], tf.string, name="image_bytes")
        # Kept as attributes, so that what they have captured is saved.
        self.serve = tf.function(self._serve, input_signature=[pixels], autograph=False)
        self.serve_bytes = tf.function(self._serve_bytes, input_signature=[files])
        return {
            "serving_default": self.serve,
            "serving_bytes": self.serve_bytes,
        }

    def describe(self) -> dict[str, Any]:
        """Returns the facts of the input for `export.json`."""
        return {
            "input": "image",
            "image_shape": list(self._shape),
            "resize": self._resize,
            "max_image_pixels": MAX_IMAGE_PIXELS,
        }


class ServedRows(tf.Module):
    """Maps rows of a table to answers, one tensor for each column.

    Args:
        answer: An `Answer`.
        columns: `"number"` or `"text"`, by name of the column.
        encode: Maps the columns by name to the model's input.
        limits: Sentences for the model card on what `encode` reads.
    """

    def __init__(
        self,
        answer: Answer,
        columns: Mapping[str, str],
        encode: Callable[[Mapping[str, tf.Tensor]], tf.Tensor],
        limits: Sequence[str],
    ) -> None:
        super().__init__()
        self._answer, self._encode = answer, encode
        self._columns, self._limits = _Untracked(dict(columns)), _Untracked(limits)
        self._arguments = _Untracked(_arguments(columns))

    def _serve(self, given: Mapping[str, tf.Tensor]) -> Any:
        checked = {}
        for name, kind in self._columns.it.items():
            tensor = given[self._arguments.it[name]]
            if kind == "text":
                with tf.control_dependencies(_text_checks(tensor, f"column {name}")):
                    checked[name] = tf.identity(tensor)
                continue
            with tf.control_dependencies([_check_rank(tensor, 1, f"column {name}")]):
                tensor = tf.identity(tensor)
            with tf.control_dependencies([_refuse(tf.math.is_inf(tensor), f"{name} is infinite")]):
                checked[name] = tf.identity(tensor)
        return self._answer(self._encode(checked))

    def signatures(self) -> dict[str, Any]:
        """Returns the functions to save, by the name that they are served under."""
        specs = {
            argument: tf.TensorSpec(
                [None], tf.float32 if self._columns.it[name] == "number" else tf.string, argument
            )
            for name, argument in self._arguments.it.items()
        }

        def serve(**given: tf.Tensor) -> Any:
            return self._serve(given)

        # Kept as an attribute, so that what it has captured is saved.
        self.serve = tf.function(serve)
        return {"serving_default": self.serve.get_concrete_function(**specs)}

    def describe(self) -> dict[str, Any]:
        """Returns the facts of the input for `export.json`."""
        return {
            "input": "row",
            "columns": [
                {"name": name, "kind": kind, "argument": self._arguments.it[name]}
                for name, kind in self._columns.it.items()
            ],
            "max_text_bytes": MAX_TEXT_BYTES,
            "limits": self._limits.it,
        }


def _checked_columns(columns: Mapping[str, str] | None) -> dict[str, str]:
    kinds = set(columns.values()) if columns else set()
    if not columns or not kinds <= {"number", "text"}:
        raise ValueError(
            '`columns` must name at least one column, and each be "number" or "text". Received: '
            f"columns={columns!r}"
        )
    return {str(name): kind for name, kind in columns.items()}


def _stacking(
    columns: Mapping[str, str], model: keras.Model
) -> Callable[[Mapping[str, tf.Tensor]], tf.Tensor]:
    """What makes a vector of numbers, in the order of their columns."""
    shape = tuple(model.inputs[0].shape[1:])
    if set(columns.values()) != {"number"} or shape != (len(columns),):
        raise ValueError(
            "`columns` needs `encode`, which makes the model's input of them, unless each is a "
            "number and the model takes a vector of them. Received: "
            f"{len(columns)} columns, and a model whose input has the shape {shape}"
        )

    def stacked(given: Mapping[str, tf.Tensor]) -> tf.Tensor:
        missing = [_refuse(tf.math.is_nan(given[name]), f"{name} is missing") for name in columns]
        with tf.control_dependencies(missing):
            return tf.stack([given[name] for name in columns], axis=1)

    return stacked


def _arguments(columns: Mapping[str, str]) -> dict[str, str]:
    """A name that a signature can have for each column, all different in small letters too.

    TensorFlow writes them small, and has a `self` of its own.
    """
    arguments: dict[str, str] = {}
    taken = {"self"}
    for name in columns:
        argument = re.sub(r"\W", "_", name, flags=re.ASCII)
        if not re.match("[A-Za-z]", argument):
            argument = f"column_{argument}"
        while argument.lower() in taken or keyword.iskeyword(argument):
            argument += "_"
        arguments[name] = argument
        taken.add(argument.lower())
    return arguments


def save(served: ServedText | ServedImages | ServedRows, model: keras.Model, folder: Path) -> None:
    """Writes a SavedModel.

    Raises:
        ValueError: if a table would not be saved with it.
        OSError: if writing failed.
    """
    try:
        with portable(model):
            tf.saved_model.save(served, str(folder), signatures=served.signatures())
    except AssertionError as error:
        if "untracked" not in str(error):
            raise
        raise ValueError(
            "The tokenizer or the model uses a table that would not be saved with it; pass the "
            "layer or tf.Module that holds the table, not a function around it."
        ) from error
    except tf.errors.OpError as error:  # As of a full disk.
        raise OSError(error.message.rpartition("; ")[2]) from error  # "PATH; REASON"


# ----------------------------------------------------------------------------- checks


def _of_any_shape(tensor: tf.Tensor) -> tf.Tensor:
    """The tensor, with a shape that is looked at when it comes.

    The shape that a signature states is not enforced by who loads it, but it is taken for granted
    when the graph is optimized, checks and all.
    """
    return tf.compat.v1.placeholder_with_default(tensor, shape=None)


@tf.autograph.experimental.do_not_convert
def _check_rank(tensor: tf.Tensor, rank: int, name: str) -> tf.Operation:
    shape = tf.shape(_of_any_shape(tensor))
    # Even so the number of axes, which tf.rank gives, is taken from the signature. Written as
    # text, each axis leaves a comma.
    text = tf.strings.reduce_join(tf.strings.join([tf.strings.as_string(shape), ","]), axis=0)
    axes = tf.strings.length(tf.strings.regex_replace(text, "[^,]", ""))
    message = f"{name} must be a tensor of {rank} axes, the batch first; number of axes received:"
    return tf.debugging.Assert(axes == rank, [message, axes])


@tf.autograph.experimental.do_not_convert
def _text_checks(text: tf.Tensor, column: str = "") -> list[tf.Operation]:
    """Errors that say which text of the batch is at fault; in a column texts may be empty."""
    with tf.control_dependencies([_check_rank(text, 1, column or "texts")]):
        text = tf.identity(text)
    name = column or "text"
    valid = tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="ignore")
    length = tf.strings.length(text)
    without_nul = tf.strings.length(tf.strings.regex_replace(text, r"\x00", ""))
    empty = [] if column else [_refuse(length == 0, "text is empty")]
    return [
        _refuse(length > MAX_TEXT_BYTES, f"{name} is longer than {MAX_TEXT_BYTES} bytes"),
        *empty,
        _refuse(tf.not_equal(valid, text), f"{name} is not valid UTF-8"),
        _refuse(
            without_nul < length, f"{name} holds a NUL byte, as UTF-16 does; encode it in UTF-8"
        ),
    ]


def _refuse(bad: tf.Tensor, message: str) -> tf.Operation:
    return tf.debugging.Assert(
        ~tf.reduce_any(bad), [f"{message}: number in the batch, from 0:", tf.where(bad)[:1, 0]]
    )


@contextlib.contextmanager
def portable(model: keras.Model) -> Iterator[None]:
    """Keeps cuDNN's ops out of the graph, which is to run without a GPU too."""
    layers = [layer for layer in layers_of(model) if hasattr(layer, "use_cudnn")]
    before = [layer.use_cudnn for layer in layers]
    for layer in layers:
        layer.use_cudnn = False
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.use_cudnn = value
