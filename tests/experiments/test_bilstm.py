"""Tests of the bidirectional LSTM against Keras' own, and of the network around it."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_ldam.experiments.models import recurrence
from keras_ldam.experiments.models.bilstm import BiLSTM, PoolWords, bilstm, reverse_words
from keras_ldam.layers import CosineDense

LENGTHS = np.array([7, 1, 4], "int32")
REAL = np.arange(7) < LENGTHS[:, None]
only_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="differentiates with TensorFlow's tape"
)


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    """So that sequences of 7 steps take more than one."""
    monkeypatch.setattr(recurrence, "CHUNK", 3)


def sequences():
    return np.random.default_rng(0).normal(size=(3, 7, 5)).astype("float32")


def word_ids(width=7):
    ids = np.zeros((3, width), "int32")
    words = np.random.default_rng(0).integers(1, 20, (3, 7))
    ids[:, :7] = np.where(REAL, words, 0)
    return ids


def network(**changes):
    keras.utils.set_random_seed(0)
    sizes = {"vocabulary_size": 20, "embedding_size": 4, "units": 3}
    return bilstm(head=CosineDense(2, name="cosines"), **{**sizes, **changes})


def keras_own(layer):
    """Keras' masked bidirectional LSTM with the weights of `layer`."""
    reference = keras.layers.Bidirectional(keras.layers.LSTM(layer.units, return_sequences=True))
    reference.build((None, None, 5))
    reference.set_weights(layer.get_weights())
    return reference


def test_reversal_keeps_the_padding_in_place():
    x = np.arange(21, dtype="float32").reshape(3, 7, 1)
    reversed_ = np.array(reverse_words(ops.convert_to_tensor(x), ops.convert_to_tensor(LENGTHS)))
    for i, length in enumerate(LENGTHS):
        np.testing.assert_array_equal(reversed_[i, :length], x[i, :length][::-1])
        np.testing.assert_array_equal(reversed_[i, length:], x[i, length:])


def test_states_are_those_of_keras_masked_layer_whatever_the_padding_holds():
    layer = BiLSTM(4)
    states = np.array(layer(sequences(), LENGTHS))
    expected = np.array(keras_own(layer)(sequences(), mask=ops.convert_to_tensor(REAL)))
    np.testing.assert_allclose(states[REAL], expected[REAL], atol=1e-5)
    garbage = np.where(REAL[:, :, None], sequences(), 100.0).astype("float32")
    np.testing.assert_allclose(np.array(layer(garbage, LENGTHS))[REAL], states[REAL], atol=1e-6)


def test_without_lengths_every_step_is_real():
    layer = BiLSTM(4)
    full = np.array(layer(sequences(), np.array([7, 7, 7], "int32")))
    np.testing.assert_allclose(layer(sequences()), full, atol=1e-6)
    np.testing.assert_allclose(keras_own(layer)(sequences()), full, atol=1e-5)


def gradients(layer, inputs, call, target):
    """Gradients of a sum of the states weighted by `target`, by inputs and weights."""
    import tensorflow as tf

    inputs = tf.constant(inputs)
    # Without a graph, which takes far longer to trace; that both give the same is tested below.
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        loss = tf.reduce_sum(call(inputs) * target)
    weights = [weight.value for weight in layer.trainable_weights]
    return [np.array(gradient) for gradient in tape.gradient(loss, [inputs, *weights])]


@only_tensorflow
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("longest", [2, 6, 7])  # less than a chunk, whole chunks, and a rest
def test_states_and_gradients_are_those_of_keras_masked_layer(longest, training):
    lengths = np.array([longest, 1, longest // 2 + 1], "int32")
    real = np.arange(longest) < lengths[:, None]
    generator = np.random.default_rng(0)
    x = generator.normal(size=(3, longest, 5)).astype("float32")
    target = np.where(real[:, :, None], generator.normal(size=(3, longest, 8)), 0).astype("float32")
    layer = BiLSTM(4)
    layer.build(x.shape)
    layer.set_weights([generator.normal(size=w.shape, scale=0.5) for w in layer.get_weights()])
    reference = keras_own(layer)

    states = np.array(layer(x, lengths, training=training))
    expected = np.array(reference(x, mask=ops.convert_to_tensor(real)))
    np.testing.assert_allclose(states[real], expected[real], atol=1e-5)
    ours = gradients(layer, x, lambda x: layer(x, lengths, training=training), target)
    theirs = gradients(reference, x, lambda x: reference(x, mask=real), target)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max())


@only_tensorflow
def test_gradients_are_the_same_compiled_by_xla_and_without_a_graph():
    import tensorflow as tf

    layer = BiLSTM(4)
    layer.build((3, 7, 5))

    def run():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(sequences(), LENGTHS, training=True) ** 2)
        return tape.gradient(loss, [weight.value for weight in layer.trainable_weights])

    ways = [tf.function(run), tf.function(run, jit_compile=True), run]
    graph, xla, eager = ([np.array(gradient) for gradient in way()] for way in ways)
    for one, two, three in zip(graph, xla, eager, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
        np.testing.assert_allclose(one, three, atol=1e-5)


@only_tensorflow
def test_a_share_of_no_sequences_has_gradients_of_zero():
    layer = BiLSTM(4)
    layer.build((None, None, 5))
    nothing, lengths = np.zeros((0, 7, 5), "float32"), np.zeros((0,), "int32")
    states = layer(nothing, lengths, training=True)
    assert tuple(states.shape) == (0, 7, 8)
    for one in gradients(layer, nothing, lambda x: layer(x, lengths, training=True), states):
        assert not one.any()


@only_tensorflow
def test_training_takes_the_recurrence_in_chunks(monkeypatch):
    taken = []
    bidirectional = recurrence.bidirectional
    monkeypatch.setattr(
        recurrence, "bidirectional", lambda *given: taken.append(1) or bidirectional(*given)
    )
    model = network()
    model(word_ids())
    assert not taken
    model(word_ids(), training=True)
    assert len(taken) == 2


def test_pooling_reads_the_real_words_only():
    pooled = np.array(PoolWords(maximum=True)(sequences(), LENGTHS))
    for i, length in enumerate(LENGTHS):
        words = sequences()[i, :length]
        np.testing.assert_allclose(pooled[i, :5], words.mean(0), atol=1e-6)
        np.testing.assert_allclose(pooled[i, 5:], words.max(0), atol=1e-6)


def test_more_padding_changes_nothing():
    model = network()
    np.testing.assert_allclose(model(word_ids(7)), model(word_ids(12)), atol=1e-5)


def test_an_empty_text_gets_a_finite_answer():
    assert np.isfinite(network()(np.zeros((2, 3), "int32"))).all()


def test_it_starts_from_the_given_word_vectors():
    table = np.random.default_rng(0).normal(size=(20, 6)).astype("float32")
    model = network(embedding=table)
    np.testing.assert_array_equal(model.get_layer("vectors").get_weights()[0], table)
    with pytest.raises(ValueError, match="20 rows"):
        network(embedding=table[1:])


def test_it_trains_and_comes_back_from_a_file(tmp_path):
    model = network(word_dropout=0.0, layer_dropout=0.0, head_dropout=0.0)
    model.compile(
        keras.optimizers.Adam(0.02),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=True,  # tracing takes far longer than these few steps
    )
    x, y = word_ids(), np.array([0, 1, 1])
    losses = model.fit(x, y, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(model(x), again(x), atol=1e-6)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="writes a SavedModel")
def test_it_exports_to_a_saved_model(tmp_path):
    import tensorflow as tf

    model = network()
    model.export(tmp_path / "saved", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(served.serve(word_ids()), model(word_ids()), atol=1e-5)


def test_it_runs_in_bfloat16_with_a_float32_head():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = network()
    outputs = model(word_ids())
    assert keras.backend.standardize_dtype(outputs.dtype) == "float32"
    assert np.isfinite(outputs).all()
