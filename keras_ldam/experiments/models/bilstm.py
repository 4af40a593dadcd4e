"""Two bidirectional LSTMs over word ids, for texts of unequal length."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ldam.experiments import ngrams
from keras_ldam.experiments.models import recurrence
from keras_ldam.experiments.models.ngram_evidence import NGramEvidence


def reverse_words(inputs: Any, lengths: Any) -> Any:
    """Reverses the first `lengths[i]` steps of sequence i; the padding after them stays.

    Args:
        inputs: Sequences padded at the end, shape `(batch, time, features)`.
        lengths: Number of real steps of each, int32, shape `(batch,)`.

    Returns:
        A tensor of the shape of `inputs`.
    """
    batch, time, features = ops.shape(inputs)
    source = recurrence.reversed_within(ops.arange(time)[None, :], lengths[:, None])
    # As rows of one table: `take_along_axis` would look up each number separately.
    rows = source + time * ops.arange(batch)[:, None]
    return ops.take(ops.reshape(inputs, (-1, features)), rows, axis=0)


@keras.saving.register_keras_serializable(package="keras_ldam")
class BiLSTM(keras.layers.Layer):
    """An LSTM in either direction, for sequences padded at the end.

    It computes what `Bidirectional(LSTM(units, return_sequences=True))` does with a mask, and needs
    none: it reverses each sequence within its own length, so that the padding is at the end in both
    directions, after all real steps. This saves the mask's selections in every time step, and
    allows the fused kernel on a GPU.

    Args:
        units: Size of the state of each direction.
        **kwargs: Further arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Sequences padded at the end, shape `(batch, time, features)`.
        lengths: Number of real steps of each, int32, shape `(batch,)`. Defaults to all.
        training: Whether gradients are needed. It chooses TensorFlow's computation on a CPU, see
            `recurrence.py`; the states are the same up to rounding.

    Returns:
        States, shape `(batch, time, 2 * units)`, the forward ones first; arbitrary at padding.
    """

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.forward = keras.layers.LSTM(
            units, return_sequences=True, dtype=self.dtype_policy, name="forward"
        )
        self.backward = keras.layers.LSTM(
            units, return_sequences=True, dtype=self.dtype_policy, name="backward"
        )

    def build(self, inputs_shape: tuple, lengths_shape: tuple | None = None) -> None:
        """Builds the LSTMs of both directions."""
        self.forward.build(inputs_shape)
        self.backward.build(inputs_shape)
        self.built = True

    def call(self, inputs: Any, lengths: Any = None, training: bool = False) -> Any:
        """Returns the states of both directions."""
        if lengths is None:
            lengths = ops.full(ops.shape(inputs)[:1], ops.shape(inputs)[1], dtype="int32")
        lengths = ops.cast(lengths, "int32")
        if training and recurrence.suits(inputs):
            return recurrence.bidirectional(inputs, lengths, self.forward.cell, self.backward.cell)
        backward = reverse_words(self.backward(reverse_words(inputs, lengths)), lengths)
        return ops.concatenate([self.forward(inputs), backward], axis=-1)

    def compute_output_shape(
        self, inputs_shape: tuple, lengths_shape: tuple | None = None
    ) -> tuple:
        """Returns the shape with `2 * units` features."""
        return (*inputs_shape[:-1], 2 * self.units)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal layer."""
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="keras_ldam")
class PoolWords(keras.layers.Layer):
    """Mean, and optionally maximum, over the real steps of sequences padded at the end.

    Args:
        maximum: Whether to append the maximum to the mean. Defaults to `False`.
        **kwargs: Further arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Sequences padded at the end, shape `(batch, time, features)`.
        lengths: Number of real steps of each, at least 1, int32, shape `(batch,)`.

    Returns:
        A tensor, shape `(batch, features)`, or `(batch, 2 * features)` with the maximum.
    """

    def __init__(self, maximum: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.maximum = maximum

    def call(self, inputs: Any, lengths: Any) -> Any:
        """Returns the pooled features."""
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

    def compute_output_shape(self, inputs_shape: tuple, lengths_shape: tuple) -> tuple:
        """Returns the shape without time."""
        return (inputs_shape[0], inputs_shape[-1] * (2 if self.maximum else 1))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal layer."""
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
    projection: int = 0,
    embedding: np.ndarray | None = None,
    known_ngrams: ngrams.NGrams | None = None,
    ngram_units: int = 20,
    name: str = "bilstm",
) -> keras.Model:
    """Builds word vectors, two bidirectional LSTMs, and pooling over the words.

    The head reads the mean and the maximum of the second LSTM's states and the mean word vector,
    `4 * units + embedding_size` features, which are normalized over the batch. Without that they
    share one large direction, all cosines of a cosine head start out equal, and a scaled margin
    loss learns little but the classes' frequencies.

    Args:
        head: The last layer.
        vocabulary_size: Number of word ids, with those of padding and of unknown words.
        embedding_size: Size of a word vector; that of `embedding` if it is given. Defaults to 65.
        units: Size of the state of each direction of each LSTM. Defaults to 48.
        word_dropout: Share of the word vectors' components that are dropped, each for a whole text.
            Defaults to 0.3.
        layer_dropout: Share of the first LSTM's states that are dropped. Defaults to 0.3.
        head_dropout: Share of the head's features that are dropped. Defaults to 0.5.
        projection: Units of a ReLU layer between these features and the head; 0 for none. So many
            features with mean zero leave the cosines of useful directions within about ±0.06,
            where a margin of 0.5 can only be met by memorizing; the projection's are few and not
            negative. Defaults to 0.
        embedding: Initial word vectors, shape `(vocabulary_size, embedding_size)`, which are
            trained further. Defaults to random ones.
        known_ngrams: Words, bigrams and trigrams whose weights, summed over a text and through a
            small ReLU layer, give the head more features. Defaults to none.
        ngram_units: Units of that layer. Defaults to 20.
        name: Name of the model. Defaults to `"bilstm"`.

    Returns:
        A model from word ids, shape `(batch, time)`, with any number of zeros after the last word,
        to the head's output.

    Raises:
        ValueError: If `embedding` does not have one row for each word id.
    """
    if embedding is not None:
        if embedding.ndim != 2 or len(embedding) != vocabulary_size:
            raise ValueError(
                f"`embedding` must have {vocabulary_size} rows. Received: shape {embedding.shape}"
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
    pooled = [
        PoolWords(maximum=True, name="pooled_states")(x, lengths),
        PoolWords(name="pooled_vectors")(vectors, lengths),
    ]
    if known_ngrams is not None:
        sizes = vocabulary_size, len(known_ngrams.bigrams), len(known_ngrams.trigrams)
        columns = known_ngrams.weights.shape[-1]
        evidence = NGramEvidence(*sizes, columns, name="ngrams")(inputs)
        evidence = layers.BatchNormalization(
            momentum=0.9, center=False, scale=False, name="ngram_evidence"
        )(evidence)
        pooled.append(layers.Dense(ngram_units, "relu", name="ngram_layer")(evidence))
    x = layers.Concatenate(name="pooled")(pooled)
    x = layers.BatchNormalization(momentum=0.9, center=False, scale=False, name="features")(x)
    x = layers.Dropout(head_dropout, name="head_dropout")(x)
    if projection:
        x = layers.Dense(projection, "relu", name="projection")(x)
    model = keras.Model(inputs, head(x), name=name)
    if embedding is not None:
        # Set after building: an initializer would put the whole table into the saved config.
        model.get_layer("vectors").set_weights([embedding])
    if known_ngrams is not None:
        model.get_layer("ngrams").assign(known_ngrams)
    return model
