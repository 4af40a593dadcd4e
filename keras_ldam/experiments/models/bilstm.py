"""Two bidirectional LSTMs over word ids, for texts of unequal length."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from keras_ldam.experiments.models import recurrence


def reverse_words(inputs, lengths):
    """Reverses the first `lengths[i]` steps of sequence i; the padding after them stays.

    Args:
        inputs: Sequences padded at the end, `[batch, time, features]`.
        lengths: How many steps of each are real, int32 `[batch]`.

    Returns:
        A tensor of the shape of `inputs`.
    """
    batch, time, features = ops.shape(inputs)
    source = recurrence.reversed_within(ops.arange(time)[None, :], lengths[:, None])
    # Rows of one table: `take_along_axis` would look up each number by itself.
    rows = source + time * ops.arange(batch)[:, None]
    return ops.take(ops.reshape(inputs, (-1, features)), rows, axis=0)


@keras.saving.register_keras_serializable(package="keras_ldam")
class BiLSTM(keras.layers.Layer):
    """An LSTM in either direction, for sequences padded at the end.

    It computes what `Bidirectional(LSTM(units, return_sequences=True))` does with a mask, but
    needs none: reversed within its own length, each sequence has its padding at the end in both
    directions, where no real step sees it. That leaves the mask's selections out of every time
    step, and the fused kernel usable on a GPU.

    Args:
        units: Size of the state of each direction.
        **kwargs: `name`, `dtype` and so on, as for every Keras layer.

    Call arguments:
        inputs: Sequences padded at the end, `[batch, time, features]`.
        lengths: How many steps of each are real, int32 `[batch]`; without it, all.
        training: Whether gradients will be asked for. It chooses the way that TensorFlow takes on a
            CPU, see `recurrence.py`; the states are the same to rounding.

    Returns:
        States `[batch, time, 2 * units]`, the forward ones first. At padding they mean nothing.
    """

    def __init__(self, units: int, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.forward = keras.layers.LSTM(
            units, return_sequences=True, dtype=self.dtype_policy, name="forward"
        )
        self.backward = keras.layers.LSTM(
            units, return_sequences=True, dtype=self.dtype_policy, name="backward"
        )

    def build(self, inputs_shape, lengths_shape=None):
        self.forward.build(inputs_shape)
        self.backward.build(inputs_shape)
        self.built = True

    def call(self, inputs, lengths=None, training=False):
        if lengths is None:
            lengths = ops.full(ops.shape(inputs)[:1], ops.shape(inputs)[1], dtype="int32")
        lengths = ops.cast(lengths, "int32")
        if training and recurrence.suits(inputs):
            return recurrence.bidirectional(inputs, lengths, self.forward.cell, self.backward.cell)
        backward = reverse_words(self.backward(reverse_words(inputs, lengths)), lengths)
        return ops.concatenate([self.forward(inputs), backward], axis=-1)

    def compute_output_shape(self, inputs_shape, lengths_shape=None):
        return (*inputs_shape[:-1], 2 * self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="keras_ldam")
class PoolWords(keras.layers.Layer):
    """Mean, and optionally maximum, over the real steps of sequences padded at the end.

    Args:
        maximum: Whether to append the maximum to the mean.
        **kwargs: `name`, `dtype` and so on, as for every Keras layer.

    Call arguments:
        inputs: Sequences padded at the end, `[batch, time, features]`.
        lengths: How many steps of each are real, at least 1, int32 `[batch]`.

    Returns:
        A tensor `[batch, features]`, or `[batch, 2 * features]` with the maximum.
    """

    def __init__(self, maximum: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.maximum = maximum

    def call(self, inputs, lengths):
        lengths = ops.cast(lengths, "int32")
        real = (ops.arange(ops.shape(inputs)[1])[None, :] < lengths[:, None])[:, :, None]
        # Summed in float32: in bfloat16 a sum over hundreds of words stops growing.
        words = ops.where(real, ops.cast(inputs, "float32"), 0.0)
        mean = ops.sum(words, axis=1) / ops.cast(lengths, "float32")[:, None]
        pooled = ops.cast(mean, inputs.dtype)
        if not self.maximum:
            return pooled
        # States of an LSTM lie within (-1, 1), word vectors nearly so.
        lowest = ops.cast(-1e4, inputs.dtype)
        return ops.concatenate([pooled, ops.max(ops.where(real, inputs, lowest), axis=1)], axis=-1)

    def compute_output_shape(self, inputs_shape, lengths_shape):
        return (inputs_shape[0], inputs_shape[-1] * (2 if self.maximum else 1))

    def get_config(self):
        return {**super().get_config(), "maximum": self.maximum}


def bilstm(
    *,
    head: keras.layers.Layer,
    vocabulary_size: int,
    embedding_size: int = 65,
    units: int = 48,
    word_dropout: float = 0.3,
    layer_dropout: float = 0.3,
    head_dropout: float = 0.5,
    embedding: np.ndarray | None = None,
    name: str = "bilstm",
) -> keras.Model:
    """Word vectors, two bidirectional LSTMs, and pooling over the words.

    The head reads the mean and the maximum of the second LSTM's states and the mean word vector,
    `4 * units + embedding_size` features. They are normalised over the batch first: all of them
    share one large common direction, and with it all cosines of a cosine head start out equal,
    from where a scaled margin loss learns the classes' frequencies and little else.

    Args:
        head: Last layer.
        vocabulary_size: Number of word ids, with those of padding and of unknown words.
        embedding_size: Size of a word vector; that of `embedding` if one is given.
        units: Size of the state of each direction of each LSTM.
        word_dropout: Share of the word vectors' components left out, each for a whole text.
        layer_dropout: Share of the first LSTM's states left out.
        head_dropout: Share of the head's features left out.
        embedding: Word vectors to start from, `[vocabulary_size, embedding_size]`; they are
            trained further. Random by default.
        name: Name of the model.

    Returns:
        A model from word ids `[batch, time]`, with zeros after the last word, to the head's
        output. How many zeros follow changes nothing.

    Raises:
        ValueError: if `embedding` has not a row for each word id.
    """
    if embedding is not None:
        if embedding.ndim != 2 or len(embedding) != vocabulary_size:
            raise ValueError(
                f"embedding must have {vocabulary_size} rows; its shape is {embedding.shape}."
            )
        embedding_size = embedding.shape[1]
    layers = keras.layers
    inputs = keras.Input((None,), dtype="int32", name="words")
    # An empty text counts as one word of padding, so that its mean is defined.
    lengths = ops.maximum(ops.sum(ops.cast(ops.not_equal(inputs, 0), "int32"), axis=1), 1)
    vectors = layers.Embedding(vocabulary_size, embedding_size, name="vectors")(inputs)
    x = layers.SpatialDropout1D(word_dropout, name="word_dropout")(vectors)
    x = BiLSTM(units, name="lstm1")(x, lengths)
    x = layers.Dropout(layer_dropout, name="layer_dropout")(x)
    x = BiLSTM(units, name="lstm2")(x, lengths)
    x = layers.Concatenate(name="pooled")(
        [
            PoolWords(maximum=True, name="pooled_states")(x, lengths),
            PoolWords(name="pooled_vectors")(vectors, lengths),
        ]
    )
    x = layers.BatchNormalization(momentum=0.9, center=False, scale=False, name="features")(x)
    x = layers.Dropout(head_dropout, name="head_dropout")(x)
    model = keras.Model(inputs, head(x), name=name)
    if embedding is not None:
        # Set after building: an initialiser would carry the whole table into the saved config.
        model.get_layer("vectors").set_weights([embedding])
    return model
