"""Training in chunks of classes, against the same model with all scores at once."""

import keras
import numpy as np
import pytest

import keras_ldam
from keras_ldam import ChunkedTraining
from keras_ldam.losses import Chunks

K, FEATURES, SIZE = 23, 4, 7
"""Three chunks and two classes more."""
COUNTS = np.arange(1, K + 1) ** 2


LABELS = np.random.default_rng(1).integers(0, K, 12)


def examples():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(len(LABELS), 6)).astype("float32")
    return x, LABELS, generator.uniform(0.5, 2, len(LABELS)).astype("float32")


def network(head=None, *, dtype=None):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    features = keras.layers.Dense(FEATURES, "tanh", dtype=dtype)(inputs)
    return keras.Model(inputs, (head or (lambda: keras_ldam.CosineDense(K)))()(features))


def trained(wrap, head, loss, **how):
    """Two epochs of two batches and a smaller one, the second with the weights of `DRW`.

    On JAX, which compiles a step for each size of a batch, of two alike.
    """
    model = network(head)
    with_loss = wrap(model)
    # XLA takes longer to compile than all of the rest does.
    on_jax = keras.backend.backend() == "jax"
    fast = {"jit_compile": on_jax}
    with_loss.compile(keras.optimizers.SGD(0.01), loss=loss(), **fast, **how)
    x, y, weights = examples()
    history = with_loss.fit(
        x,
        y,
        sample_weight=weights,
        batch_size=6 if on_jax else 5,
        epochs=2,
        shuffle=False,
        callbacks=[keras_ldam.DRW(1, verbose=0)],
        verbose=0,
    )
    return history.history, model.get_weights()


def chunked(model):
    return ChunkedTraining(model, chunk_size=SIZE)


HEADS_AND_LOSSES = {
    "LDAM, whose margins grow, and its adjustment": (
        lambda: keras_ldam.CosineDense(K),
        lambda: keras_ldam.LDAM(COUNTS, tau=0.5),
    ),
    "LDAM on the head of the paper": (
        lambda: keras_ldam.CosineDense(K, use_bias=False),
        lambda: keras_ldam.LDAM(COUNTS, gradual=False, scale=30, reduction="mean_over_data"),
    ),
    "logit adjustment": (
        lambda: keras.layers.Dense(K),
        lambda: keras_ldam.LogitAdjusted(COUNTS, ignore_class=int(LABELS[0])),
    ),
    "cross-entropy": (
        lambda: keras.layers.Dense(K, use_bias=False, kernel_regularizer="l2"),
        lambda: keras_ldam.CrossEntropy(COUNTS),
    ),
}


@pytest.mark.filterwarnings("ignore:.*rare classes count twice")
@pytest.mark.parametrize("which", HEADS_AND_LOSSES)
def test_training_in_chunks_is_training_with_all_scores_at_once(which):
    head, loss = HEADS_AND_LOSSES[which]

    def metrics():
        if which != "logit adjustment":
            return None
        return [keras_ldam.ClassErrors(COUNTS, ignore_class=int(LABELS[0]))]

    history, weights = trained(chunked, head, loss, weighted_metrics=metrics())
    expected, expected_weights = trained(
        lambda model: model, head, loss, weighted_metrics=metrics()
    )
    assert history.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, atol=1e-5, rtol=1e-5, err_msg=name)
    for found, wanted in zip(weights, expected_weights, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("how", [{"run_eagerly": True}, {"jit_compile": True}])
def test_it_runs_eagerly_and_compiled_in_mixed_precision_and_with_long_chunks(how):
    def mixed(model):
        return ChunkedTraining(model, chunk_size=1000)

    def weights(wrap):
        model = network(dtype="mixed_bfloat16")
        wrapper = wrap(model)
        wrapper.compile("sgd", loss=keras_ldam.LDAM(COUNTS), **how)
        x, y, _ = examples()
        wrapper.train_on_batch(x, y)
        return model.get_weights()

    for found, wanted in zip(weights(mixed), weights(lambda model: model), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_it_is_saved_and_goes_on(tmp_path):
    x, y, _ = examples()
    wrapper = chunked(network())
    wrapper.compile("sgd", loss=keras_ldam.LDAM(COUNTS), run_eagerly=True)
    wrapper.train_on_batch(x, y)
    wrapper.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.chunk_size == SIZE
    np.testing.assert_allclose(loaded.predict(x, verbose=0), wrapper.predict(x, verbose=0))
    assert loaded.predict(x, verbose=0).shape == (12, K)
    losses = [model.train_on_batch(x, y) for model in (wrapper, loaded)]
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_the_best_classes_are_those_of_all_scores():
    model = network()
    x, _, _ = examples()
    scores, classes = chunked(model).best(x, 9, batch_size=5)
    every = model.predict(x, verbose=0)
    np.testing.assert_array_equal(classes, np.argsort(-every, axis=1)[:, :9])
    np.testing.assert_allclose(scores, -np.sort(-every, axis=1)[:, :9], atol=1e-6)
    with pytest.raises(ValueError, match=r"`k` must be at most 23\. Received: k=24"):
        chunked(model).best(x, 24)


def test_scores_that_are_not_finite_make_the_loss_nan_and_their_example_wrong():
    model = network()
    wrapper = chunked(model)
    metric = keras_ldam.ClassErrors(COUNTS)
    wrapper.compile("sgd", loss=keras_ldam.LDAM(COUNTS), metrics=[metric], run_eagerly=True)
    x = np.full((2, 6), np.nan, "float32")
    loss, *_ = wrapper.test_on_batch(x, np.array([0, 1]))
    assert np.isnan(loss)
    assert float(metric.result()["error"]) == 1


def test_guesses_are_counted_as_scores_are():
    guesses, labels = np.array([[2], [0], [-1], [1]], "int32"), np.array([2, 1, 0, 7])
    metric = keras_ldam.ClassErrors([9, 9, 9], ignore_class=7, per_class=True)
    metric.update_state(labels, guesses)
    found = {name: float(value) for name, value in metric.result().items()}
    assert found["error"] == pytest.approx(2 / 3)
    assert [found[f"error_{j}"] for j in range(3)] == [1, 1, 0]


def test_what_needs_all_scores_is_refused_with_one_sentence():
    x, y, _ = examples()
    wrapper = chunked(network())
    with pytest.raises(ValueError, match="`loss` must be LDAM, LogitAdjusted or CrossEntropy"):
        wrapper.compile("sgd", loss=keras_ldam.Focal(COUNTS))
    with pytest.raises(ValueError, match=r"Received: <.*VectorScaling"):
        wrapper.compile("sgd", loss=keras_ldam.VectorScaling(COUNTS))
    with pytest.raises(ValueError, match="Metrics must be ClassErrors"):
        wrapper.compile("sgd", loss=keras_ldam.LDAM(COUNTS), metrics=["accuracy"])
    wrapper.compile("sgd", loss=keras_ldam.LDAM(COUNTS[1:]), run_eagerly=True)
    with pytest.raises(ValueError, match="one entry for each of the 23 classes"):
        wrapper.fit(x, y, verbose=0)
    wrapper.compile("sgd", loss=keras_ldam.LDAM(COUNTS), run_eagerly=True)
    with pytest.raises(ValueError, match="Scores in chunks of classes need integer labels"):
        wrapper.fit(x, np.eye(K)[y], verbose=0)
    with pytest.raises(ValueError, match=r"whole numbers in 0 … 22.*Received: 23"):
        wrapper.fit(x, y + K - y.max(), verbose=0)
    with pytest.raises(ValueError, match=r"ends in a CosineDense, or in a Dense without"):
        chunked(keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "softmax")]))
    with pytest.raises(ValueError, match="`chunk_size` must be a whole number of at least 1"):
        ChunkedTraining(network(), chunk_size=0)


def test_a_class_vector_of_length_zero_has_cosine_0_and_no_gradient():
    model = network(lambda: keras_ldam.CosineDense(K, kernel_initializer="zeros"))
    wrapper = chunked(model)
    wrapper.compile("sgd", loss=keras_ldam.LDAM(COUNTS), run_eagerly=True)
    wrapper.train_on_batch(*examples()[:2])
    weights = model.get_weights()
    assert np.all(np.isfinite(weights[0])) and not weights[2].any()


def test_two_chunk_sizes_give_one_loss():
    generator = np.random.default_rng(2)
    features, kernel = generator.normal(size=(3, 5)), generator.normal(size=(4, K))
    given = [keras.ops.convert_to_tensor(part, "float32") for part in (features, kernel)]
    labels = keras.ops.convert_to_tensor([0, 22, -1], "int32")
    found = [
        Chunks(given[1], np.zeros(K, "float32"), None, size).label_and_rest(given[0], labels)
        for size in (1, 23)
    ]
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    scores = features[:, :4] @ kernel
    np.testing.assert_allclose(found[0][0], [scores[0, 0], scores[1, 22], 0], rtol=1e-5)
    np.testing.assert_allclose(found[0][1][2], np.log(np.exp(scores[2]).sum()), rtol=1e-5)
