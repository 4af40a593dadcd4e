"""Training in chunks of classes, against the same model with all scores at once."""

import keras
import numpy as np
import pytest

import keras_ldam
from keras_ldam import ChunkedTraining
from keras_ldam.losses import Chunks, Negatives, SampledChunks

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


def trained(wrap, head, loss, *, graph, **how):
    """Two epochs of two batches and a smaller one, the second with the weights of `DRW`.

    On JAX, which compiles a step for each size of a batch, of two alike. Elsewhere one kind of loss
    is trained in graphs: tracing takes longer than all of the rest does.
    """
    model = network(head)
    with_loss = wrap(model)
    on_jax = keras.backend.backend() == "jax"
    fast = {"jit_compile": on_jax, "run_eagerly": not (graph or on_jax)}
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


def test_a_head_that_was_called_before_is_trained_on_what_its_last_call_is_given():
    inputs = keras.Input((FEATURES,))
    head = keras_ldam.CosineDense(K, use_bias=False)
    base = keras.Model(inputs, head(inputs))
    added = keras.layers.Rescaling([[-1.0, 1.0, 1.0, 1.0]])
    model = keras.Model(inputs, head(added(base.input)))
    x = np.random.default_rng(0).normal(size=(12, FEATURES)).astype("float32")
    losses = []
    for trains in (model, chunked(model)):
        trains.compile("sgd", loss=keras_ldam.LDAM(COUNTS), run_eagerly=True)
        losses.append(trains.test_on_batch(x, LABELS))
    base.compile("sgd", loss=keras_ldam.LDAM(COUNTS), run_eagerly=True)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert abs(base.test_on_batch(x, LABELS) - losses[0]) > 1e-3


def test_what_is_ignored_moves_no_margin_and_may_be_no_number():
    x, y, _ = examples()
    y = np.where(np.arange(len(y)) % 2, y, -1)
    broken = np.where((y < 0)[:, None], np.float32("nan"), x)
    model, losses = network(), []
    for trains, given in ((model, x), (chunked(model), x), (chunked(model), broken)):
        trains.compile("sgd", keras_ldam.LDAM(COUNTS, ignore_class=-1), run_eagerly=True)
        losses.append(trains.test_on_batch(given, y))
    np.testing.assert_allclose(losses[1:], losses[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (lambda: keras.layers.Dense(K, dtype="bfloat16"), "must be float32.*Received: bfloat16"),
        (lambda: keras_ldam.CosineDense(K, activity_regularizer="l2"), "no `activity_regularizer`"),
        (lambda: keras.layers.Dense(K + 1), "at most .* Received: 24 classes"),
    ],
)
def test_heads_that_chunks_cannot_compute_are_refused(head, message, monkeypatch):
    monkeypatch.setattr("keras_ldam.wrappers.chunked._MOST_CLASSES", K)
    with pytest.raises(ValueError, match=message):
        chunked(network(head))


def test_a_metric_of_other_classes_is_refused():
    metrics = [keras_ldam.ClassErrors(COUNTS[:-1])]
    with pytest.raises(ValueError, match=r"entry for each of the 23 classes. Received: 22"):
        chunked(network()).compile("sgd", keras_ldam.LDAM(COUNTS), metrics=metrics)


HEADS_AND_LOSSES = {
    "LDAM, whose margins grow, and its adjustment": (
        lambda: keras_ldam.CosineDense(K),
        lambda: keras_ldam.LDAM(COUNTS, tau=0.5),
    ),
    "LDAM on the head of the paper": (
        lambda: keras_ldam.CosineDense(K, use_bias=False),
        lambda: keras_ldam.LDAM(
            COUNTS,
            gradual=False,
            scale=30,
            reduction="mean_over_data",
            ignore_class=int(LABELS[0]),
        ),
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

    graph = which.startswith("logit adjustment")
    (history, weights), (expected, expected_weights) = (
        trained(wrap, head, loss, graph=graph, weighted_metrics=metrics())
        for wrap in (chunked, lambda model: model)
    )
    assert history.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, atol=1e-5, rtol=1e-5, err_msg=name)
    for found, wanted in zip(weights, expected_weights, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("how", [{"run_eagerly": True}, {"jit_compile": True}])
def test_it_runs_eagerly_and_compiled_in_mixed_precision_and_with_long_chunks(how):
    if keras.backend.backend() == "torch" and "jit_compile" in how:
        pytest.skip("torch compiles for minutes, with warnings of its own")

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


def test_guesses_are_not_rounded_under_a_mixed_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        for use_bias in (False, True):
            model = keras.Sequential(
                [keras.Input((2,)), keras_ldam.CosineDense(2, use_bias=use_bias)]
            )
            kernel = model.layers[-1].kernel
            kernel.assign(np.zeros(kernel.shape))
            kernel.assign(np.array([[0.999, 1.0], [0.04, 0.0], [0.0, 0.0]])[: kernel.shape[0]])
            wrapper = ChunkedTraining(model)
            metrics = [keras_ldam.ClassErrors([5, 5])]
            wrapper.compile("sgd", keras_ldam.CrossEntropy([5, 5]), metrics=metrics)
            x = np.array([[1.0, 0.0]], "float32")
            told = wrapper.evaluate(x, np.array([1]), verbose=0, return_dict=True)
            assert told["error"] == 0.0
            assert model.predict(x, verbose=0).argmax() == 1
    finally:
        keras.config.set_dtype_policy("float32")


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
    wrapper.reset_metrics()  # Before 3.15 Keras averages over the batches so far.
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


def test_class_vectors_whose_square_is_infinite_make_scores_nan():
    kernel = np.array([[1e20, 1.0], [0.0, 1.0]], "float32")
    features = np.array([[1.0, 0.0, 0.0]], "float32")
    chunks = Chunks(kernel, np.zeros(2, "float32"), epsilon=1e-6, size=2)
    own, rest = chunks.label_and_rest(features, np.array([0]))
    assert np.isnan(keras.ops.convert_to_numpy(own)).all()
    assert np.isfinite(keras.ops.convert_to_numpy(rest)).all()


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


# ----------------------------------------------------------------------------- sampled negatives


def test_a_draw_has_each_class_as_often_as_is_expected():
    draws = Negatives(COUNTS, 9)
    assert draws.expected.sum() == pytest.approx(9) and draws.expected.max() == 1
    # min(1, c n), for one c.
    below = draws.expected < 1
    ratios = draws.expected[below] / COUNTS[below]
    assert np.ptp(ratios) < 1e-12 and np.all(ratios.max() * COUNTS[~below] >= 1)
    generator = np.random.default_rng(0)
    times = np.zeros(K)
    for _ in range(400):
        classes, logs = draws.draw(generator.uniform(size=9).astype("float32"))
        np.testing.assert_allclose(logs, np.log(draws.expected)[classes], rtol=1e-5, atol=1e-6)
        times += np.bincount(classes, minlength=K)
    np.testing.assert_array_equal(times[~below], 400)
    error = np.sqrt(400 * draws.expected)
    assert np.all(np.abs(times - 400 * draws.expected) < 4 * error)


def of_one_step(**how):
    """The loss of a batch, and the model after a step."""
    model = network()
    wrapper = ChunkedTraining(model, chunk_size=SIZE, seed=1, **how)
    loss = keras_ldam.LDAM(COUNTS, tau=0.5, scale=4)
    wrapper.compile(keras.optimizers.SGD(1.0), loss=loss, run_eagerly=True)
    return wrapper.train_on_batch(*examples()[:2]), model.get_weights()


def test_with_all_classes_drawn_it_is_exact():
    loss, weights = of_one_step(negatives=K, power=0.3)
    expected, expected_weights = of_one_step()
    assert loss == pytest.approx(expected, rel=1e-6)
    for found, wanted in zip(weights, expected_weights, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_over_many_draws_the_sum_is_exact_on_average_and_the_gradient_nearly():
    generator = np.random.default_rng(2)
    features, kernel, way = (
        generator.normal(size=shape).astype("float32") for shape in ((3, 5), (4, K), (4, K))
    )
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    labels = keras.ops.convert_to_tensor([0, 22, 7], "int32")
    bias, offsets = np.zeros(K, "float32"), np.log(COUNTS / COUNTS.sum()).astype("float32")
    draws = Negatives(COUNTS**0.5, 12)

    def found(step, drawn=None):
        parts = (keras.ops.convert_to_tensor(kernel + step * way), bias, 1e-7, K)
        chunks = Chunks(*parts) if drawn is None else SampledChunks(*parts, *drawn)
        own, rest = chunks.label_and_rest(features, labels, scale=4.0, offsets=offsets)
        own, rest = keras.ops.convert_to_numpy(own), keras.ops.convert_to_numpy(rest)
        return rest, np.mean(np.logaddexp(0, rest - 4 * own))

    sums, slopes = [], []
    for _ in range(80):
        drawn = draws.draw(generator.uniform(size=12).astype("float32"))
        (_, up), (_, down) = found(0.05, drawn), found(-0.05, drawn)
        sums.append(np.exp(found(0, drawn)[0]))
        slopes.append((up - down) / 0.1)
    exact, slope = np.exp(found(0)[0]), (found(0.05)[1] - found(-0.05)[1]) / 0.1
    error = np.std(sums, axis=0) / np.sqrt(len(sums))
    assert np.all(np.abs(np.mean(sums, axis=0) - exact) < 4 * error)
    assert np.all(error < 0.05 * exact)
    # The weight of each class is the ratio of two estimates, which is right nearly.
    assert np.mean(slopes) == pytest.approx(slope, rel=0.1)


def test_what_is_drawn_is_told_and_what_cannot_be_is_refused(tmp_path):
    wrapper = ChunkedTraining(network(), negatives=9, power=0, seed=1)
    wrapper.compile("sgd", loss=keras_ldam.LDAM(COUNTS), run_eagerly=True)
    assert wrapper.rare_share == pytest.approx(Negatives(COUNTS, 9).expected[COUNTS < 20].sum() / 9)
    x, y, _ = examples()
    # All classes count in validation.
    exact = chunked(wrapper.model)
    exact.compile("sgd", loss=keras_ldam.LDAM(COUNTS), run_eagerly=True)
    assert wrapper.test_on_batch(x, y) == pytest.approx(exact.test_on_batch(x, y), rel=1e-6)
    wrapper.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert (loaded.negatives, loaded.power, loaded.seed) == (9, 0, 1)
    assert loaded.rare_share == wrapper.rare_share
    with pytest.raises(ValueError, match=r"`negatives` must be at most 23.*negatives=24"):
        ChunkedTraining(network(), negatives=24)
    with pytest.raises(ValueError, match="`seed` must be a whole number"):
        ChunkedTraining(network(), negatives=3, seed="x")
    assert ChunkedTraining(network(), negatives=3.0, seed=1.0).get_config()["seed"] == 1
    for given, message in ((x[:0], "array of examples"), (3, "array of examples. Received: 3")):
        with pytest.raises(ValueError, match=message):
            exact.best(given)
    with pytest.raises(ValueError, match="`batch_size` must be a whole number"):
        exact.best(x, batch_size=0)
    with pytest.raises(ValueError, match="`rare_share` needs `negatives`"):
        exact.rare_share  # noqa: B018
