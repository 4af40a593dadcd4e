"""Adversarial training, against a step computed by hand in NumPy."""

import keras
import numpy as np
import pytest

import keras_ldam
from keras_ldam import AdversarialTraining

WORDS = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 5, 9]], "int32")
LABELS = np.array([0, 1, 0, 1])


def linear(*, trainable_vectors=True):
    """Mean word vector, then logits: its gradients are short enough to write down."""
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(10, 4, trainable=trainable_vectors),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(2, use_bias=False),
        ]
    )


def compiled(model, *, epsilon, **how):
    """Eager unless asked otherwise: compiling takes longer than a step."""
    trained = AdversarialTraining(model, epsilon=epsilon)
    loss = keras_ldam.CrossEntropy([2, 2])
    trained.compile(keras.optimizers.SGD(0.5), loss=loss, **{"run_eagerly": True, **how})
    return trained


def deep(*, mask=False):
    keras.utils.set_random_seed(5)
    words = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(10, 4, mask_zero=mask)(words)
    x = keras.layers.GlobalAveragePooling1D()(x)
    x = keras.layers.BatchNormalization(momentum=0.5)(x)
    return keras.Model(words, keras_ldam.CosineDense(2)(x))


def gradients(vectors, kernel):
    """Of the mean softmax cross-entropy: for the vectors `(batch, time, size)` and the kernel."""
    mean = vectors.mean(1)
    scores = np.exp(mean @ kernel)
    slope = (scores / scores.sum(1, keepdims=True) - np.eye(2)[LABELS]) / len(LABELS)
    length = vectors.shape[1]
    return np.repeat((slope @ kernel.T)[:, None] / length, length, 1), mean.T @ slope


@pytest.mark.parametrize(
    "how", [{"run_eagerly": False}, {}, {"run_eagerly": False, "jit_compile": True}]
)
def test_a_step_is_that_of_the_batch_and_of_the_perturbed_batch(how):
    model = linear()
    table, kernel = (w.astype("float64") for w in model.get_weights())
    vectors = table[WORDS]
    for_vectors, for_kernel = gradients(vectors, kernel)
    norm = np.sqrt(np.sum(for_vectors**2, (1, 2), keepdims=True))
    more_vectors, more_kernel = gradients(vectors + 0.7 * for_vectors / norm, kernel)
    for_table = np.zeros_like(table)
    np.add.at(for_table, WORDS, for_vectors + more_vectors)

    compiled(model, epsilon=0.7, **how).fit(WORDS, LABELS, batch_size=4, verbose=0)

    after_table, after_kernel = model.get_weights()
    np.testing.assert_allclose(after_table, table - 0.5 * for_table, atol=1e-6)
    np.testing.assert_allclose(after_kernel, kernel - 0.5 * (for_kernel + more_kernel), atol=1e-6)


def test_frozen_word_vectors_are_perturbed_too():
    moved = []
    for trainable in (True, False):
        model = linear(trainable_vectors=trainable)
        compiled(model, epsilon=0.7).fit(WORDS, LABELS, batch_size=4, verbose=0)
        moved.append(model.get_weights())
    np.testing.assert_allclose(moved[0][1], moved[1][1], atol=1e-7)
    np.testing.assert_array_equal(moved[1][0], linear().get_weights()[0])


def test_the_loss_and_the_moving_statistics_are_those_of_the_batch_as_it_is():
    seen = []
    for wrap in (lambda model: model, lambda model: AdversarialTraining(model, epsilon=1.0)):
        model = deep()
        trained = wrap(model)
        trained.compile(keras.optimizers.SGD(0.5), loss=keras_ldam.LDAM([2, 2]), run_eagerly=True)
        loss = trained.fit(WORDS, LABELS, batch_size=4, verbose=0).history["loss"]
        statistics = model.get_layer(index=3).non_trainable_weights
        seen.append((loss, [keras.ops.convert_to_numpy(v) for v in statistics]))
    np.testing.assert_allclose(seen[0][0], seen[1][0], rtol=1e-5)
    np.testing.assert_allclose(seen[0][1], seen[1][1], rtol=1e-5)


def test_padding_stays_masked():
    model = deep(mask=True)
    trained = AdversarialTraining(model, epsilon=1.0)
    padded = np.pad(WORDS, ((0, 0), (0, 2)))
    expected = model.predict(padded, verbose=0)
    np.testing.assert_array_equal(trained.predict(padded, verbose=0), expected)
    np.testing.assert_allclose(expected, model.predict(WORDS, verbose=0), atol=1e-6)
    after = []
    for words in (WORDS, padded):
        model = deep(mask=True)
        compiled(model, epsilon=1.0).train_on_batch(words, LABELS)
        after.append(model.get_weights())
    for ours, theirs in zip(*after, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_ids_of_words_are_not_rounded_under_mixed_precision():
    words = keras.Input((None,))  # In float32, as is the default.
    vectors = keras.layers.Embedding(1000, 2, dtype="mixed_bfloat16")(words)
    model = keras.Model(words, keras.layers.GlobalAveragePooling1D()(vectors))
    x = np.array([[257.0, 999.0]])
    found = AdversarialTraining(model, epsilon=1.0).predict(x, verbose=0)
    np.testing.assert_array_equal(found, model.predict(x, verbose=0))


def test_a_weight_that_does_not_reach_the_loss_stays():
    words = keras.Input((None,), dtype="int32")
    first = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(10, 4)(words))
    other = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(10, 4, name="idle")(words))
    outputs = [keras.layers.Dense(2)(first), keras.layers.Dense(2)(other)]
    model = keras.Model(words, outputs)
    before = model.get_layer("idle").get_weights()[0]
    trained = AdversarialTraining(model, epsilon=1.0)
    loss = [keras_ldam.CrossEntropy([2, 2]), None]
    trained.compile(keras.optimizers.SGD(0.5), loss=loss, run_eagerly=True)
    trained.train_on_batch(WORDS, [LABELS, LABELS])
    np.testing.assert_array_equal(model.get_layer("idle").get_weights()[0], before)


def test_an_embedding_that_would_not_be_perturbed_is_refused():
    words = keras.Input((3, 2), dtype="int32")
    apart = keras.layers.TimeDistributed(keras.layers.Embedding(10, 4, name="apart"))(words)
    usual = keras.layers.Embedding(10, 4)(words)
    model = keras.Model(words, keras.layers.Flatten()(apart + usual))
    with pytest.raises(ValueError, match="Received: 'apart' inside another layer"):
        AdversarialTraining(model, epsilon=1.0)


def test_an_embedding_that_is_the_head_too_is_perturbed_at_the_words_alone():
    words = keras.Input((3,), dtype="int32")
    embedding = keras.layers.ReversibleEmbedding(10, 4)
    scores = embedding(keras.layers.Dense(4, "tanh")(embedding(words)), reverse=True)
    model = keras.Model(words, scores)
    trained = AdversarialTraining(model, epsilon=1.0)
    np.testing.assert_allclose(
        trained.predict(WORDS, verbose=0), model.predict(WORDS, verbose=0), rtol=1e-6
    )
    trained.compile("sgd", loss=keras_ldam.CrossEntropy([1] * 10), run_eagerly=True)
    assert np.isfinite(trained.train_on_batch(WORDS, WORDS))


def test_embeddings_inside_models_and_several_of_them_are_perturbed():
    keras.utils.set_random_seed(1)
    encoder = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(10, 4),
            keras.layers.GlobalAveragePooling1D(),
        ]
    )
    inputs = {
        "title": keras.Input((None,), dtype="int32", name="title"),
        "text": keras.Input((None,), dtype="int32", name="text"),
    }
    other = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(10, 2)(inputs["text"]))
    both = [encoder(inputs["title"]), encoder(inputs["text"]), other]
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Concatenate()(both)))
    before = model.get_weights()
    x = {"title": WORDS, "text": WORDS[::-1].copy()}
    after = []
    for epsilon in (0.0, 1.0):
        model.set_weights(before)
        compiled(model, epsilon=epsilon).fit(x, LABELS, batch_size=4, verbose=0)
        after.append(model.get_weights())
    for start, plain, perturbed in zip(before, *after, strict=True):
        assert np.abs(plain - start).max() > 0
        assert np.abs(perturbed - plain).max() > 0


def test_deferred_weights_reach_the_loss_of_a_wrapped_model():
    trained = AdversarialTraining(deep(), epsilon=0.5)
    loss = keras_ldam.LDAM([30, 10])
    trained.compile("sgd", loss=loss, run_eagerly=True)
    trained.fit(WORDS, LABELS, epochs=2, verbose=0, callbacks=[keras_ldam.DRW(1)])
    np.testing.assert_allclose(loss.class_weights, keras_ldam.class_weights([30, 10]), rtol=1e-6)


def test_a_checkpoint_of_a_wrapper_brings_back_model_and_optimizer(tmp_path):
    model = deep()
    trained = compiled(model, epsilon=0.7)
    trained.fit(WORDS, LABELS, verbose=0)
    trained.save_weights(tmp_path / "checkpoint.weights.h5")
    other = compiled(deep(), epsilon=0.7)
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "checkpoint.weights.h5")
    for a, b in zip(trained.variables, other.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(other.optimizer.iterations) == 1


def test_a_saved_wrapper_continues_training(tmp_path):
    model = deep()
    trained = compiled(model, epsilon=0.7)
    trained.fit(WORDS, LABELS, verbose=0)
    trained.save(tmp_path / "trained.keras")
    loaded = keras.models.load_model(tmp_path / "trained.keras")
    assert loaded.epsilon == 0.7
    for each in (trained, loaded):
        each.fit(WORDS, LABELS, batch_size=4, verbose=0)
    for a, b in zip(model.get_weights(), loaded.model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("epsilon", [-1, float("nan"), float("inf"), "1"])
def test_an_impossible_length_is_refused(epsilon):
    with pytest.raises(ValueError, match="`epsilon` must be a number in"):
        AdversarialTraining(deep(), epsilon=epsilon)


def test_a_model_without_an_embedding_is_refused():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)], name="vectors")
    with pytest.raises(ValueError, match=r"must have a keras\.layers\.Embedding layer.*vectors"):
        AdversarialTraining(model, epsilon=1.0)


def test_a_model_whose_graph_is_unknown_is_refused():
    with pytest.raises(ValueError, match="must be a functional model, or a sequential one"):
        AdversarialTraining(keras.Sequential([keras.layers.Embedding(3, 2)]), epsilon=1.0)
