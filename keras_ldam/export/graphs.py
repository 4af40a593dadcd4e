"""The graphs that are served: from raw texts or images to probabilities, with TensorFlow's ops."""

from __future__ import annotations

import contextlib

import tensorflow as tf

MAX_TEXT_BYTES = 100_000
"""Longer texts are refused: the longest review of IMDB has 14,000 bytes."""


class Answer(tf.Module):
    """From the model's input to the four outputs.

    Args:
        model: Gives scores z, `[batch, K]`.
        factor: What the scores are multiplied by: scale / temperature.
        shift: Added after that, `[K]`.
        class_names: K names.
    """

    def __init__(self, model, factor, shift, class_names):
        super().__init__()
        self._model = _Untracked(model)
        # The graph is to hold the weights and nothing else of the Keras model.
        self._weights = [variable.value for variable in model.variables]
        tables = (getattr(layer, "lookup_table", None) for layer in model._flatten_layers())
        self._tables = [table for table in tables if table is not None]
        self._factor, self._shift, self._class_names = factor, shift, class_names

    def __call__(self, inputs):
        # Convolutions fail on empty batches where oneDNN fuses them, so an empty one is given an
        # example, which is taken off again.
        shape = tf.shape(inputs)
        batch, missing = shape[0], tf.cast(shape[:1] == 0, tf.int32)
        example = tf.zeros(tf.concat([missing, shape[1:]], axis=0), inputs.dtype)
        padded = tf.concat([inputs, example], axis=0)
        # Keras compiles a convolution by XLA where it does not know the number of channels.
        padded.set_shape([None, *inputs.shape[1:]])
        scores = self._model.it(padded, training=False)[:batch]
        scores = tf.cast(scores, tf.float32)
        logits = scores * tf.constant(self._factor, tf.float32) + self._shift
        index = tf.argmax(logits, axis=-1)
        return {
            "probabilities": tf.nn.softmax(logits),
            "logits": logits,
            "class_index": index,
            "label": tf.gather(tf.constant(self._class_names), index),
        }


class _Untracked:
    """Holds an object that is not to be saved with its holder."""

    def __init__(self, it):
        self.it = it


class ServedText(tf.Module):
    """Texts to answers.

    Args:
        answer: An `Answer`.
        tokenizer: Strings `[batch]` to the model's input.
    """

    def __init__(self, answer, tokenizer):
        super().__init__()
        self._answer, self._tokenizer = answer, tokenizer

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def serve(self, text):
        with tf.control_dependencies(_text_checks(text)):
            ids = self._tokenizer(tf.identity(text))
        if not (ids.dtype.is_integer and ids.shape.rank == 2):
            return self._answer(ids)
        wordless = ~tf.reduce_any(tf.not_equal(ids, 0), axis=1)
        with tf.control_dependencies([_refuse(wordless, "text has no words")]):
            return self._answer(tf.identity(ids))

    def signatures(self):
        return {"serving_default": self.serve.get_concrete_function()}

    def describe(self):
        return {"input": "text", "max_text_bytes": MAX_TEXT_BYTES}


class ServedImages(tf.Module):
    """Pixels, or encoded files, to answers.

    Args:
        answer: An `Answer`.
        shape: Height, width and channels; None: any.
        resize: Whether files of another size are resized, not refused.
        decode: An encoded file to the model's input; None: TensorFlow's decoder.
    """

    def __init__(self, answer, shape, resize, decode):
        super().__init__()
        self._answer, self._shape, self._resize = answer, shape, resize or decode is not None
        self._decode = decode

    def _serve(self, image):
        wanted = [-1 if length is None else length for length in self._shape]
        message = f"images must be of height, width and channels {wanted}".replace("-1", "any")
        with tf.control_dependencies([_check_rank(image, 4, "images")]):
            size = tf.shape(_of_any_shape(image))[1:]
        right = tf.reduce_all((size == wanted) | (tf.constant(wanted) < 0))
        with tf.control_dependencies([tf.debugging.Assert(right, [f"{message}; received", size])]):
            return self._answer(tf.identity(image))

    def _serve_bytes(self, image_bytes):
        height, width, channels = self._shape

        def decode(encoded):
            image = tf.io.decode_image(encoded, channels=channels, expand_animations=False)
            image.set_shape([None, None, channels])
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

        with tf.control_dependencies([_check_rank(image_bytes, 1, "image files")]):
            image_bytes = tf.identity(image_bytes)
        images = tf.map_fn(
            self._decode or decode,
            image_bytes,
            fn_output_signature=tf.TensorSpec(self._shape, tf.uint8),
        )
        return self._answer(images)

    def signatures(self):
        pixels = tf.TensorSpec([None, *self._shape], tf.uint8, name="image")
        files = tf.TensorSpec([None], tf.string, name="image_bytes")
        # Kept as attributes, so that what they have captured is saved.
        self.serve = tf.function(self._serve, input_signature=[pixels])
        self.serve_bytes = tf.function(self._serve_bytes, input_signature=[files])
        return {
            "serving_default": self.serve.get_concrete_function(),
            "serving_bytes": self.serve_bytes.get_concrete_function(),
        }

    def describe(self):
        return {"input": "image", "image_shape": list(self._shape), "resize": self._resize}


def _of_any_shape(tensor):
    """The tensor, its shape to be looked at when it comes.

    The shape that a signature states is not enforced by who loads it, but it is taken for granted
    when the graph is optimised, checks and all.
    """
    return tf.compat.v1.placeholder_with_default(tensor, shape=None)


def _check_rank(tensor, rank, name):
    shape = tf.shape(_of_any_shape(tensor))
    # Even so the number of axes, which tf.rank gives, is taken from the signature. Written as
    # text, each axis leaves a comma.
    text = tf.strings.reduce_join(tf.strings.join([tf.strings.as_string(shape), ","]), axis=0)
    axes = tf.strings.length(tf.strings.regex_replace(text, "[^,]", ""))
    message = f"{name} must be a tensor of {rank} axes, the batch first; number of axes received:"
    return tf.debugging.Assert(axes == rank, [message, axes])


def _text_checks(text):
    """Errors that say which text of the batch is at fault."""
    with tf.control_dependencies([_check_rank(text, 1, "texts")]):
        text = tf.identity(text)
    valid = tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="ignore")
    length = tf.strings.length(text)
    return [
        _refuse(length > MAX_TEXT_BYTES, f"text is longer than {MAX_TEXT_BYTES} bytes"),
        _refuse(length == 0, "text is empty"),
        _refuse(tf.not_equal(valid, text), "text is not valid UTF-8"),
    ]


def _refuse(bad, message):
    return tf.debugging.Assert(
        ~tf.reduce_any(bad), [f"{message}: number in the batch, from 0:", tf.where(bad)[:1, 0]]
    )


@contextlib.contextmanager
def portable(model):
    """Keeps cuDNN's ops out of the graph: it is to run where there is no GPU, too."""
    layers = [layer for layer in model._flatten_layers() if hasattr(layer, "use_cudnn")]
    before = [layer.use_cudnn for layer in layers]
    for layer in layers:
        layer.use_cudnn = False
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.use_cudnn = value
