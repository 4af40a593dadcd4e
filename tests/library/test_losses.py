"""The losses against an independent oracle, hand numbers and identities. Runs on every backend."""

import keras
import numpy as np
import oracle
import pytest
from keras import ops

import keras_ldam
from keras_ldam import losses

COUNTS = [500, 60, 20, 5]
SCALE = 30.0
OFFICIAL = {"scale": SCALE, "gradual": False}
"""What the official code has, where this library's default is another."""


@pytest.fixture
def batch(rng):
    z = rng.uniform(-1, 1, size=(64, 4)).astype(np.float32)
    return rng.integers(0, 4, size=64), z


def values(tensor):
    return ops.convert_to_numpy(tensor)


def gradient(function, z):
    """dΣf/dz on the backend in use."""
    if keras.backend.backend() == "jax":
        import jax

        return np.asarray(jax.grad(lambda z: function(z).sum())(z))
    if keras.backend.backend() == "torch":
        import torch

        z = torch.tensor(z, requires_grad=True)
        function(z).sum().backward()
        return z.grad.numpy()
    import tensorflow as tf

    z = tf.constant(z)
    with tf.GradientTape() as tape:
        tape.watch(z)
        total = tf.reduce_sum(function(z))
    return tape.gradient(total, z).numpy()


EACH = {
    "cross_entropy": (lambda y, z: losses.cross_entropy(y, z), oracle.cross_entropy),
    "ldam": (
        lambda y, z: losses.ldam(y, z, keras_ldam.margins(COUNTS), scale=SCALE),
        lambda y, z: oracle.ldam(y, z, oracle.margins(COUNTS, 0.5), SCALE),
    ),
    "ldam_hinge": (
        lambda y, z: losses.ldam_hinge(y, z, keras_ldam.margins(COUNTS), scale=SCALE),
        lambda y, z: oracle.ldam_hinge(y, z, oracle.margins(COUNTS, 0.5), SCALE),
    ),
    "logit_adjusted": (
        lambda y, z: losses.logit_adjusted(y, z, COUNTS, tau=1.5, scale=3.0),
        lambda y, z: oracle.logit_adjusted(y, z, COUNTS, 1.5, 3.0),
    ),
    "vector_scaling": (
        lambda y, z: losses.vector_scaling(y, z, COUNTS, gamma=0.4, tau=1.25, scale=3.0),
        lambda y, z: oracle.vector_scaling(y, z, COUNTS, 0.4, 1.25, 3.0),
    ),
    "ldam_adjusted": (
        lambda y, z: losses.ldam(
            y, z, keras_ldam.margins(COUNTS), scale=SCALE, offsets=np.log(COUNTS)
        ),
        lambda y, z: oracle.ldam(
            y, z, oracle.margins(COUNTS, 0.5), SCALE, oracle.adjustment(COUNTS, 1.0)
        ),
    ),
    "focal": (
        lambda y, z: losses.focal(y, z, gamma=0.5),
        lambda y, z: oracle.focal(y, z, 0.5),
    ),
    "sigmoid_focal": (
        lambda y, z: losses.focal(y, z, gamma=0.5, form="sigmoid"),
        lambda y, z: oracle.sigmoid_focal(y, z, 0.5),
    ),
}


@pytest.mark.parametrize("name", EACH)
def test_each_loss_equals_the_oracle(name, batch):
    ours, theirs = EACH[name]
    np.testing.assert_allclose(values(ours(*batch)), theirs(*batch), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", EACH)
def test_one_hot_labels_equal_integer_labels(name, batch):
    (y, z), (ours, _) = batch, EACH[name]
    one_hot = np.eye(4, dtype=np.float32)[y]
    np.testing.assert_allclose(values(ours(one_hot, z)), values(ours(y, z)), rtol=2e-6, atol=2e-6)
    np.testing.assert_array_equal(values(ours(y[:, None], z)), values(ours(y, z)))


@pytest.mark.parametrize("name", EACH)
def test_gradients_equal_numerical_ones(name, batch):
    (y, z), (ours, theirs) = (part[:16] for part in batch), EACH[name]
    numerical = np.zeros(z.shape)
    for j in range(z.shape[1]):
        step = np.zeros(z.shape)
        step[:, j] = 1e-5
        z64 = z.astype(np.float64)
        numerical[:, j] = (theirs(y, z64 + step) - theirs(y, z64 - step)) / 2e-5
    np.testing.assert_allclose(gradient(lambda z: ours(y, z), z), numerical, rtol=1e-3, atol=2e-4)


def test_zero_margin_is_scaled_cross_entropy(batch):
    y, z = batch
    ldam = keras_ldam.LDAM(COUNTS, max_margin=0.0, scale=10.0)
    entropy = keras_ldam.CrossEntropy(COUNTS)
    assert float(ldam(y, z)) == pytest.approx(float(entropy(y, 10.0 * z)), rel=1e-6)


def test_equal_margins_come_from_the_same_class(batch):
    y, z = batch
    uniform = keras_ldam.LDAM(COUNTS, exponent=0.0, gradual=False)
    equal = keras_ldam.LDAM([9, 9, 9, 9], gradual=False)
    assert float(uniform(y, z)) == pytest.approx(float(equal(y, z)), rel=1e-6)


def test_zero_margins_give_the_plain_hinge(batch):
    y, z = batch
    loss = keras_ldam.LDAMHinge(COUNTS, max_margin=0.0, scale=1.0)
    expected = oracle.ldam_hinge(y, z, np.zeros(4), 1.0).mean()
    assert float(loss(y, z)) == pytest.approx(expected, rel=1e-5)


def test_focal_without_focus_is_cross_entropy(batch):
    y, z = batch
    np.testing.assert_array_equal(
        values(losses.focal(y, z, gamma=0.0)), values(losses.cross_entropy(y, z))
    )


def test_losses_without_adjustment_are_those_that_they_extend(batch):
    y, z = batch
    soft = np.random.default_rng(3).dirichlet(np.ones(4), size=64).astype(np.float32)
    weights = keras_ldam.class_weights(COUNTS)
    for labels in (y, soft):
        plain = float(keras_ldam.CrossEntropy(COUNTS, class_weights=weights)(labels, z))
        for loss in (
            keras_ldam.LogitAdjusted(COUNTS, tau=0.0, class_weights=weights),
            keras_ldam.VectorScaling(COUNTS, gamma=0.0, tau=0.0, class_weights=weights),
        ):
            assert float(loss(labels, z)) == plain
        # A prior that is the same for all classes shifts all logits alike.
        equal = keras_ldam.LogitAdjusted([7, 7, 7, 7], class_weights=weights)
        assert float(equal(labels, z)) == pytest.approx(plain, rel=1e-6)
        adjusted = float(keras_ldam.LogitAdjusted(COUNTS, tau=1.5, scale=4)(labels, z))
        divided = keras_ldam.VectorScaling(COUNTS, gamma=0.0, tau=1.5, scale=4)
        assert float(divided(labels, z)) == adjusted
        margin = keras_ldam.LDAM(COUNTS, max_margin=0.0, tau=1.5, scale=4)
        assert float(margin(labels, z)) == adjusted != pytest.approx(plain, rel=1e-2)
    ldam, offsets = keras_ldam.LDAM(COUNTS, **OFFICIAL), np.zeros(4)
    unadjusted = losses.ldam(y, z, ldam.margins, scale=SCALE, offsets=offsets)
    np.testing.assert_array_equal(values(ldam.call(y, z)), values(unadjusted))


def test_each_share_of_a_soft_label_has_the_weight_of_its_own_class(batch):
    z, rng = batch[1], np.random.default_rng(3)
    soft = rng.dirichlet(np.ones(4), size=64).astype(np.float32)
    weights = np.array([0.25, 0.0, 1.5, 4.0])  # One class counts nothing.
    shares = soft * weights
    linear = {
        keras_ldam.CrossEntropy: {},
        keras_ldam.Focal: {"gamma": 2.0},
        keras_ldam.LogitAdjusted: {},
        keras_ldam.VectorScaling: {},
        keras_ldam.LDAMHinge: {},
    }
    for make, arguments in linear.items():
        loss = make(COUNTS, class_weights=weights, **arguments)
        own = np.stack([values(loss.call(np.full(64, j), z)) for j in range(4)], axis=1)
        expected = (shares * own).sum() / shares.sum()
        assert float(loss(soft, z)) == pytest.approx(expected, rel=1e-5)
    # So a constant score learns the weighted mean of the labels.
    loss = keras_ldam.CrossEntropy(COUNTS, class_weights=[0.25, 1.0, 1.5, 4.0])
    mean = (soft * [0.25, 1.0, 1.5, 4.0]).sum(axis=0)
    best = np.log(mean / mean.sum())
    for change in rng.normal(scale=0.05, size=(8, 4)):
        there, beside = (np.tile(x.astype("float32"), (64, 1)) for x in (best, best + change))
        assert float(loss(soft, there)) < float(loss(soft, beside))
    # And an answer between no and yes has the weight of either side, as `pos_weight` does.
    sides = keras_ldam.CrossEntropy([[9, 1]], class_weights=[[0.5, 3.0]])
    expected = (0.7 * 0.5 * np.log1p(np.exp(1)) + 0.3 * 3 * np.log1p(np.exp(-1))) / 1.25
    assert float(sides([[0.3]], [[1.0]])) == pytest.approx(expected, rel=1e-5)


def test_hand_numbers_of_the_adjusted_losses():
    # All scores equal: what is left are the frequencies, 0.9 and 0.1, or their powers.
    flat = [[0.3, 0.3]]
    assert float(keras_ldam.LogitAdjusted([90, 10])([1], flat)) == pytest.approx(-np.log(0.1))
    half = keras_ldam.LogitAdjusted([90, 10], tau=0.5)
    assert float(half([1], flat)) == pytest.approx(np.log(1 + 3), rel=1e-6)
    # Divisors 1 and 16^0.25 = 2.
    scaled = keras_ldam.VectorScaling([80, 5], gamma=0.25, tau=0.0)
    assert float(scaled([1], [[1.0, 4.0]])) == pytest.approx(np.log(1 + np.exp(-1)), rel=1e-6)
    # Logits 30 (0.42 - 0.5) = -2.4 and 5.4, to which log 0.1 and log 0.9 are added.
    both = keras_ldam.LDAM([1000, 9000], max_margin=0.5, tau=1.0, **OFFICIAL)
    expected = np.log1p(np.exp(7.8 + np.log(9)))
    assert float(both([0], [[0.42, 0.18]])) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_scores_learn_the_class_frequencies_that_the_adjustment_leaves(tau):
    weights = np.array([0.2, 0.6, 1.2, 2.0])
    seen = np.array(COUNTS, np.float64) ** (1 - tau) * weights
    for loss in (
        keras_ldam.LDAM(COUNTS, tau=tau, class_weights=weights),
        keras_ldam.LogitAdjusted(COUNTS, tau=tau, class_weights=weights),
    ):
        np.testing.assert_allclose(loss.learned_prior(), seen / seen.sum(), rtol=1e-6)
    with pytest.raises(ValueError, match="needs a loss that has `counts`"):
        keras_ldam.CrossEntropy().learned_prior()


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_without_features_the_best_scores_are_the_learned_prior(tau):
    # Labels of the training frequencies and nothing to tell examples apart: the scores with the
    # smallest loss are those of the prior that the loss says they learn.
    counts = [60, 30, 10]
    y = np.repeat([0, 1, 2], counts)
    loss = keras_ldam.LogitAdjusted(counts, tau=tau, scale=2.0, class_weights=[0.5, 1.0, 1.5])
    best = (np.log(loss.learned_prior()) / loss.scale).astype(np.float32)
    z = np.tile(best, (100, 1))
    slope = gradient(lambda z: loss(y, z), z).sum(axis=0)
    np.testing.assert_allclose(slope, 0, atol=1e-6)


@pytest.mark.parametrize("kind", ["effective", "inverse"])
def test_class_weights_give_a_weighted_mean(kind, batch):
    y, z = batch
    loss = keras_ldam.LDAM(COUNTS, **OFFICIAL)
    weights = keras_ldam.class_weights(COUNTS, kind=kind)
    loss.class_weights.assign(weights)
    each = oracle.ldam(y, z, oracle.margins(COUNTS, 0.5), SCALE)
    expected = oracle.weighted_mean(each, weights[y].astype(np.float64))
    assert float(loss(y, z)) == pytest.approx(expected, rel=1e-6)
    assert float(loss(np.eye(4)[y], z)) == pytest.approx(expected, rel=2e-6)


def test_sample_weights_multiply_class_weights(batch, rng):
    y, z = batch
    own = rng.uniform(0.1, 2, size=64).astype(np.float32)
    weights = keras_ldam.class_weights(COUNTS)
    loss = keras_ldam.CrossEntropy(COUNTS, class_weights=weights)
    expected = oracle.weighted_mean(oracle.cross_entropy(y, z), (own * weights[y]).astype(float))
    assert float(loss(y, z, own)) == pytest.approx(expected, rel=1e-5)
    assert float(loss(y, z, own[:, None])) == pytest.approx(expected, rel=1e-5)


def test_focal_takes_p_from_the_unweighted_cross_entropy(batch):
    y, z = batch
    weights = keras_ldam.class_weights(COUNTS)
    loss = keras_ldam.Focal(COUNTS, gamma=2.0, class_weights=weights)
    expected = oracle.weighted_mean(oracle.focal(y, z, 2.0), weights[y].astype(float))
    assert float(loss(y, z)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_focal_stays_finite_where_the_model_is_certain(gamma, form):
    z = np.array([[200.0, -200.0], [-200.0, 200.0]], dtype=np.float32)
    y = np.array([0, 0])
    slope = gradient(lambda z: losses.focal(y, z, gamma=gamma, form=form), z)
    assert np.isfinite(values(losses.focal(y, z, gamma=gamma, form=form))).all()
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("name", EACH)
def test_dense_predictions_lose_what_their_pixels_lose(name, rng):
    z = rng.uniform(-1, 1, size=(2, 3, 5, 4)).astype(np.float32)
    y = rng.integers(0, 4, size=(2, 3, 5))
    ours, _ = EACH[name]
    dense = values(ours(y, z))
    assert dense.shape == (2, 3, 5)
    np.testing.assert_allclose(dense.ravel(), values(ours(y.ravel(), z.reshape(-1, 4))), rtol=1e-6)
    loss = keras_ldam.LDAM(COUNTS, class_weights=keras_ldam.class_weights(COUNTS))
    assert float(loss(y, z)) == pytest.approx(float(loss(y.ravel(), z.reshape(-1, 4))), rel=1e-5)


def test_soft_labels_mix_weights_and_margins(rng):
    z = rng.uniform(-1, 1, size=(8, 4)).astype(np.float32)
    soft = rng.dirichlet(np.ones(4), size=8).astype(np.float32)
    margins = keras_ldam.margins(COUNTS)
    expected = -(soft * oracle.log_softmax(SCALE * (z - soft * margins).astype(float))).sum(-1)
    np.testing.assert_allclose(
        values(losses.ldam(soft, z, margins, scale=SCALE)), expected, rtol=1e-5
    )


def test_classes_missing_from_the_batch_do_no_harm():
    loss = keras_ldam.LDAM(COUNTS, class_weights=keras_ldam.class_weights(COUNTS), **OFFICIAL)
    alone = float(loss([0, 0], [[0.4, 0.1, 0, 0], [0.4, 0.1, 0, 0]]))
    assert np.isfinite(alone)
    # A single class has a weight that cancels.
    unweighted = keras_ldam.LDAM(COUNTS, **OFFICIAL)
    assert alone == pytest.approx(float(unweighted([0], [[0.4, 0.1, 0, 0]])), rel=1e-6)


def test_labels_above_256_survive_bfloat16():
    keras.config.set_dtype_policy("mixed_bfloat16")
    counts = np.arange(1, 301)
    scores = np.zeros((1, 300), dtype=np.float32)
    scores[0, 257] = 1.0
    scores = ops.cast(scores, "bfloat16")
    loss = keras_ldam.LDAM(counts, max_margin=0.0, scale=30)
    result = loss(np.array([257]), scores)
    assert keras.backend.standardize_dtype(result.dtype) == "float32"
    assert float(result) < 1e-6
    assert float(loss(np.array([256]), scores)) > 10


def test_reduction_none_gives_one_value_for_each_example(batch):
    loss = keras_ldam.LDAM(COUNTS, reduction=None)
    assert values(loss(*batch)).shape == (64,)


@pytest.mark.parametrize(
    "loss",
    [
        keras_ldam.LDAM(COUNTS, max_margin=0.3, scale=20, test_prior=[1, 2, 3, 4], name="a"),
        keras_ldam.LDAMHinge(COUNTS, max_margin=0.0, exponent=1 / 3),
        keras_ldam.Focal(COUNTS, gamma=0.5, form="sigmoid", reduction="sum"),
        keras_ldam.LDAM(COUNTS, tau=0.5),
        keras_ldam.LogitAdjusted(COUNTS, tau=1.5, scale=15, class_weights=[1, 2, 3, 4]),
        keras_ldam.VectorScaling(COUNTS, gamma=0.1, tau=0.5, scale=2),
        keras_ldam.CrossEntropy(COUNTS, class_weights=[1, 2, 3, 4], reduction="mean_over_data"),
        keras_ldam.Focal(),
        keras_ldam.CrossEntropy(COUNTS, class_weights=keras_ldam.class_weights(COUNTS)),
    ],
    ids=lambda loss: loss.name,
)
def test_a_loss_comes_back_from_its_config(loss, batch):
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(again) is type(loss)
    assert again.get_config() == loss.get_config()
    assert float(again(*batch)) == float(loss(*batch))


def test_a_model_that_was_saved_goes_on_with_its_adjustment(rng, tmp_path):
    x, y = rng.normal(size=(64, 3)).astype("float32"), rng.integers(0, 4, size=64)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    model.compile("sgd", loss=keras_ldam.VectorScaling(COUNTS, gamma=0.2, tau=1.5))
    keras_ldam.set_class_weights(model, [1, 2, 3, 4])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.loss.get_config() == model.loss.get_config()
    assert again.evaluate(x, y, verbose=0) == pytest.approx(model.evaluate(x, y, verbose=0))


@pytest.mark.parametrize("label", [4, -1, 0.5, float("nan")])
def test_a_label_that_is_no_class_gets_a_sentence(label):
    loss = keras_ldam.LDAM(COUNTS)
    with pytest.raises(ValueError, match=rf"Labels must be whole numbers.* 3.*Received: {label}"):
        loss(np.array([0, label]), np.zeros((2, 4), np.float32))


@pytest.mark.parametrize("label", [0.5, 2.7, float("nan")])
def test_a_fraction_is_no_class_inside_compiled_code_either(label):
    x, y = np.ones((2, 3), np.float32), np.array([0, label], np.float32)
    model = keras.Sequential([keras.Input((3,)), keras_ldam.CosineDense(4)])
    model.compile("sgd", loss=keras_ldam.LDAM(COUNTS))
    try:
        loss = model.train_on_batch(x, y)
    except Exception as error:  # TensorFlow on a CPU, and torch, which compiles nothing here.
        assert "Labels must be whole numbers" in str(error)
    else:
        assert np.isnan(loss)


def test_counts_that_do_not_fit_the_output_get_a_sentence():
    with pytest.raises(
        ValueError, match=r"must have 4 classes on its last axis, as given by `counts`.*shape"
    ):
        keras_ldam.LDAM(COUNTS)([0], np.zeros((1, 3), np.float32))
    with pytest.raises(ValueError, match=r"One score per example is for two classes, with labels"):
        keras_ldam.LDAM([9, 3, 2])([0], np.zeros((1, 1), np.float32))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="only TensorFlow has strings")
def test_labels_that_are_strings_get_a_sentence():
    with pytest.raises(ValueError, match="Received: strings"):
        keras_ldam.LDAM(COUNTS)(np.array(["a", "b"]), np.zeros((2, 4), np.float32))


def test_labels_of_a_wrong_shape_get_a_sentence():
    with pytest.raises(ValueError, match="`y_true` must hold integer labels of shape"):
        keras_ldam.LDAM(COUNTS)(np.zeros((2, 3)), np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match="`y_true` must hold integer labels of shape"):
        keras_ldam.LDAM(COUNTS)(np.zeros(3), np.zeros((2, 4), np.float32))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: keras_ldam.LDAM([5, 0]), "Received: 0 for class 1"),
        (lambda: keras_ldam.LDAM(None), "`counts` must be"),
        (lambda: keras_ldam.LDAM(COUNTS, max_margin=-1), "max_margin"),
        (lambda: keras_ldam.LDAM(COUNTS, scale=0), "scale"),
        (lambda: keras_ldam.LDAMHinge(COUNTS, scale=float("nan")), "scale"),
        (lambda: keras_ldam.Focal(COUNTS, gamma=-1), "gamma"),
        (lambda: keras_ldam.Focal(COUNTS, form="tanh"), "available: softmax, sigmoid"),
        (lambda: keras_ldam.Focal(COUNTS, gamma=float("inf")), "`gamma` must be a finite number"),
        (
            lambda: keras_ldam.LDAM(COUNTS, tau=-1),
            "`tau` must be a finite number of at least 0. Received: -1",
        ),
        (lambda: keras_ldam.LogitAdjusted(COUNTS, tau=-1), "`tau` must be .* Received: -1"),
        (lambda: keras_ldam.LogitAdjusted(COUNTS, tau=np.nan), "`tau` must be .* Received: nan"),
        (lambda: keras_ldam.LDAM(COUNTS, gradual="no"), "`gradual` must be True or False"),
        (lambda: keras_ldam.LogitAdjusted(COUNTS, scale=0), "`scale` must be"),
        (lambda: keras_ldam.LogitAdjusted([5, 0]), "Received: 0 for class 1"),
        (lambda: keras_ldam.LogitAdjusted(None), "`counts` must be"),
        (lambda: keras_ldam.VectorScaling(COUNTS, gamma=-0.1), r"`gamma` .*\[0, 1\]. Received"),
        (lambda: keras_ldam.VectorScaling(COUNTS, gamma=1.5), r"`gamma` .*\[0, 1\]. Received: 1.5"),
        (lambda: keras_ldam.VectorScaling(COUNTS, tau=np.inf), "`tau` must be .* Received: inf"),
        (lambda: keras_ldam.CrossEntropy(class_weights=[1, 1]), "need `counts`"),
        (
            lambda: keras_ldam.CrossEntropy(COUNTS, class_weights=[1]),
            "`class_weights` must have one entry for each of the 4",
        ),
    ],
)
def test_bad_arguments_get_a_sentence(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("name", EACH)
def test_scores_in_bfloat16_are_lost_in_float32(name, batch):
    (y, z), (ours, _) = batch, EACH[name]
    scores = ops.cast(z, "bfloat16")
    loss = ours(y, scores)
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    np.testing.assert_array_equal(values(loss), values(ours(y, ops.cast(scores, "float32"))))


@pytest.mark.parametrize("counts", [COUNTS, None])
def test_inside_compiled_code_a_label_that_is_no_class_weighs_nan(counts):
    loss, scores = keras_ldam.CrossEntropy(counts), np.zeros((3, 4), np.float32)
    if keras.backend.backend() == "jax":
        import jax as compiler

        compiled = compiler.jit(lambda y: loss.example_weights(y, scores))
    elif keras.backend.backend() == "tensorflow":
        import tensorflow as compiler

        compiled = compiler.function(lambda y: loss.example_weights(y, scores))
    else:
        pytest.skip("nothing is compiled")
    weights = values(compiled(np.array([0, 4, -1], np.int32)))
    np.testing.assert_array_equal(weights, [1, np.nan, np.nan])


def test_focus_and_scale_that_are_left_out_are_those_of_the_docstrings(batch):
    y, z = batch
    margins, hinge = keras_ldam.margins(COUNTS), oracle.margins(COUNTS, 0.5)
    expected = oracle.focal(y, z, 1.0)
    np.testing.assert_allclose(values(losses.focal(y, z)), expected, rtol=1e-5, atol=1e-6)
    assert float(keras_ldam.Focal()(y, z)) == pytest.approx(expected.mean(), rel=1e-5)
    expected = oracle.ldam_hinge(y, z, hinge, 30.0)
    np.testing.assert_allclose(
        values(losses.ldam_hinge(y, z, margins, scale=30)), expected, rtol=1e-5
    )


def test_a_class_of_weight_zero_does_not_count(batch):
    y, z = batch
    rest = y != 3
    loss = keras_ldam.CrossEntropy(COUNTS, class_weights=[1, 1, 1, 0])
    expected = oracle.cross_entropy(y[rest], z[rest]).mean()
    assert float(loss(y, z)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weights", [[1, 1, 1, -1], [1, 1, 1, np.nan], [1, 1, 1, np.inf]])
def test_class_weights_that_are_negative_or_no_numbers_get_a_sentence(weights):
    with pytest.raises(ValueError, match="`class_weights` must be 4 finite numbers of at least 0"):
        keras_ldam.CrossEntropy(COUNTS, class_weights=weights)


def test_without_counts_soft_labels_weigh_one(batch):
    y, z = batch
    loss = keras_ldam.CrossEntropy(reduction="sum")
    assert float(loss(np.eye(4)[y], z)) == pytest.approx(float(loss(y, z)), rel=1e-5)


@pytest.mark.parametrize("steps", [3, 5])
def test_a_weight_for_each_example_is_for_all_its_steps(rng, steps):
    z = rng.uniform(-1, 1, size=(3, steps, 4)).astype(np.float32)
    y = rng.integers(0, 4, size=(3, steps))
    loss = keras_ldam.LDAM(COUNTS)
    for weights in ([1.0, 0.0, 0.0], [[1.0], [0.0], [0.0]]):
        assert float(loss(y, z, weights)) == pytest.approx(float(loss(y[:1], z[:1])), rel=1e-5)
    whole = np.repeat([[0.5], [1.0], [2.0]], steps, axis=1)
    assert float(loss(y, z, [0.5, 1.0, 2.0])) == pytest.approx(float(loss(y, z, whole)), rel=1e-5)
    for wrong in ([1.0, 2.0], np.ones((3, steps + 1)), np.ones((3, steps, 4))):
        with pytest.raises(ValueError, match=r"`sample_weight` must have the shape \(3, "):
            loss(y, z, wrong)


def test_steps_that_a_mask_leaves_out_have_no_weight(rng):
    z = ops.convert_to_tensor(rng.uniform(-1, 1, size=(2, 3, 4)).astype(np.float32))
    y = rng.integers(0, 4, size=(2, 3))
    mask = np.array([[True, True, False], [True, False, False]])
    loss = keras_ldam.CrossEntropy(COUNTS, class_weights=[1, 2, 3, 4])
    whole = values(loss.example_weights(y, z))
    weights = (1 + y) * mask
    each = oracle.cross_entropy(y.ravel(), values(z).reshape(6, 4)).reshape(2, 3)
    expected = (weights * each).sum() / weights.sum()
    z._keras_mask = ops.convert_to_tensor(mask)
    np.testing.assert_array_equal(values(loss.example_weights(y, z)), whole * mask)
    assert float(loss(y, z)) == pytest.approx(expected, rel=1e-5)
    z._keras_mask = ops.convert_to_tensor(mask[:, 1])  # Of an example, for all its steps.
    np.testing.assert_array_equal(values(loss.example_weights(y, z)), whole * mask[:, 1:2])
    assert float(loss(y, z)) == pytest.approx((whole * each)[0].sum() / whole[0].sum(), rel=1e-5)
    z._keras_mask = ops.convert_to_tensor(0.5 * mask)  # A share, as Keras multiplies by it.
    np.testing.assert_array_equal(values(loss.example_weights(y, z)), 0.5 * whole * mask)
    alone = keras_ldam.CrossEntropy(COUNTS, class_weights=[1, 2, 3, 4], reduction=None)
    np.testing.assert_allclose(values(alone(y, z)), 0.5 * whole * mask * each, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_scores_of_another_type_lose_no_mask(dtype, batch):
    y = batch[0][:6]
    z = (0.2 * np.eye(4)[y]).astype(dtype)  # So that something has been learned.
    void = np.append(y, [255] * 3), np.concatenate([z, np.zeros((3, 4), dtype)])
    for reduction in ("mean_with_sample_weight", "mean_over_data"):
        loss = keras_ldam.LDAM(COUNTS, ignore_class=255, reduction=reduction)
        expected = pytest.approx(float(loss(y, z)), rel=1e-5)
        assert float(loss(*void)) == expected
        assert float(jitted(loss)(*void)) == expected
    masked = ops.convert_to_tensor(void[1])
    masked._keras_mask = ops.convert_to_tensor(void[0] < 255)
    assert float(keras_ldam.LDAM(COUNTS)(np.append(y, [0] * 3), masked)) == expected


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="others cannot raise inside")
def test_a_void_label_inside_compiled_code_gets_a_sentence(batch):
    import tensorflow as tf

    y, z = batch
    function = tf.function(LOSSES["ldam"])
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        function(tf.constant(np.append(y[1:], 255)), tf.constant(z))
    last = caught.value.message.strip().splitlines()[-2]
    assert "in 0 … 3; where there is none" in last and "Received:] [255]" in last
    assert np.isfinite(function(tf.constant(y), tf.constant(z)))


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (keras_ldam.focal, {"form": "Softmax"}, "Unknown form 'Softmax' of the focal loss"),
        (keras_ldam.focal, {"gamma": -1.0}, "`gamma` must be a finite number of at least 0"),
        (
            keras_ldam.ldam,
            {"margins": [0.5, 0.2, 0.1], "scale": 30},
            "one entry for each of the 2 classes",
        ),
        (keras_ldam.ldam, {"margins": 0.5, "scale": 30}, "one entry for each of the 2 classes"),
        (
            keras_ldam.ldam_hinge,
            {"margins": [0.5], "scale": 30},
            "one entry for each of the 2 classes",
        ),
        (
            keras_ldam.ldam,
            {"margins": [0.5, 0.1], "scale": 30, "offsets": [1.0]},
            "`offsets` must have one entry for each of the 2 classes",
        ),
        (keras_ldam.logit_adjusted, {"counts": [5, 3], "tau": -1.0}, "`tau` must be"),
        (keras_ldam.logit_adjusted, {"counts": [5, 3], "scale": 0.0}, "`scale` must be"),
        (keras_ldam.logit_adjusted, {"counts": [5, 3, 2]}, "must have 3 classes .* by `counts`"),
        (keras_ldam.vector_scaling, {"counts": [5, 3, 2]}, "must have 3 classes .* by `counts`"),
        (keras_ldam.vector_scaling, {"counts": [5, 3], "gamma": 2.0}, "`gamma` must be"),
        (keras_ldam.vector_scaling, {"counts": [5, 0]}, "Received: 0 for class 1"),
    ],
)
def test_functions_refuse_what_their_classes_refuse(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function([0], [[0.5, 0.1]], **arguments)


# ----------------------------------------------------------------------------- rows of labels

LOSSES = {
    "cross_entropy": keras_ldam.CrossEntropy(),
    "weighted": keras_ldam.CrossEntropy(COUNTS, class_weights=[0.5, 1.0, 1.5, 1.0]),
    "ldam": keras_ldam.LDAM(COUNTS),
    "ldam_hinge": keras_ldam.LDAMHinge(COUNTS),
    "focal": keras_ldam.Focal(COUNTS),
    "vector_scaling": keras_ldam.VectorScaling(COUNTS),
    "ldam_adjusted": keras_ldam.LDAM(COUNTS, tau=1.0),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_a_row_without_a_label_weighs_nothing(name, compiled, batch):
    (y, z), loss = batch, LOSSES[name]
    rows = np.eye(4, dtype=np.float32)[y]
    void = np.concatenate([rows, np.zeros((64, 4), np.float32)])
    twice = np.concatenate([z, z[::-1]])
    function = jitted(loss) if compiled else loss
    assert float(function(void, twice)) == pytest.approx(float(loss(rows, z)), rel=1e-5)


@pytest.mark.parametrize("reduction", ["mean_over_data", "sum_over_batch_size"])
def test_a_row_without_a_label_and_a_void_label_count_as_no_example(reduction, batch):
    y, z = batch
    how = {"reduction": reduction, "class_weights": [0.5, 1.0, 1.5, 0.0]}
    loss = keras_ldam.CrossEntropy(COUNTS, ignore_class=255, **how)
    expected = pytest.approx(float(loss(y[:40], z[:40])), rel=1e-5)
    rows = np.eye(4, dtype=np.float32)[y]
    rows[40:] = 0
    for labels in (np.append(y[:40], [255] * 24), rows):
        assert float(loss(labels, z)) == expected


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "ldam", "ldam_hinge", "logit_adjusted"])
def test_a_function_makes_a_label_that_is_no_class_nan_inside_compiled_code(name):
    given = {"ldam": {"margins": [0.5, 0.2], "scale": 10}, "logit_adjusted": {"counts": [9, 1]}}
    given["ldam_hinge"] = given["ldam"]
    function = getattr(keras_ldam, name)
    compiled = jitted(lambda y, z: function(y, z, **given.get(name, {})))
    y, z = np.array([0, 7]), np.array([[0.4, 0.1], [0.4, 0.1]], "float32")
    try:
        found = values(compiled(ops.convert_to_tensor(y), ops.convert_to_tensor(z)))
    except Exception as error:  # TensorFlow on a CPU raises.
        assert type(error).__name__ == "InvalidArgumentError"
    else:
        assert np.isfinite(found[0]) and np.isnan(found[1])


def jitted(loss):
    """A loss inside compiled code, on the backend in use."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(loss)
    if keras.backend.backend() == "torch":
        pytest.skip("torch has no compiled code here")
    import tensorflow as tf

    return tf.function(loss)


@pytest.mark.parametrize(
    "row", [[3.0, 0, 0, 0], [1.0, 1.0, 0, 0], [0.5, 0, 0, 0], [1.5, -0.5, 0, 0], [np.nan, 0, 0, 0]]
)
def test_a_row_that_is_no_distribution_is_refused_and_is_nan_in_compiled_code(row):
    y, z = np.array([row, [0, 1, 0, 0]], np.float32), np.zeros((2, 4), np.float32)
    for loss in (keras_ldam.LDAM(COUNTS), keras_ldam.CrossEntropy()):
        with pytest.raises(ValueError, match="row of one-hot or soft labels must hold"):
            loss(y, z)
        assert np.isnan(float(jitted(loss)(y, z)))


def test_labels_that_are_smoothed_or_rounded_pass(batch):
    y, z = batch
    smooth = 0.9 * np.eye(4)[y] + 0.025
    loss = keras_ldam.LDAM(COUNTS)
    coarse = ops.cast(ops.convert_to_tensor(smooth.astype("float32")), "bfloat16")
    assert float(loss(coarse, z)) == pytest.approx(float(loss(smooth, z)), rel=1e-2)


def test_rows_of_a_shape_that_a_generator_leaves_open_are_one_hot(batch):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("shapes are open in TensorFlow's graphs only")
    import tensorflow as tf

    y, z = batch
    rows = np.eye(4, dtype=np.float32)[y]
    loss, metric = keras_ldam.LDAM(COUNTS), keras_ldam.ClassErrors(COUNTS)

    @tf.function(input_signature=[tf.TensorSpec([None, None]), tf.TensorSpec([None, 4])])
    def step(y, z):
        metric.update_state(y, z)
        return loss(y, z)

    assert float(step(rows, z)) == pytest.approx(float(loss(y, z)), rel=1e-5)
    assert float(metric.result()["error"]) == pytest.approx(np.mean(z.argmax(1) != y))


def test_a_label_beyond_32_bits_is_no_class():
    z = np.zeros((2, 2), np.float32)
    with pytest.raises(ValueError, match=r"Received: 4.29497e"):
        keras_ldam.LDAMHinge([5, 5])(np.array([2**32, 0]), z)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        compiled = tf.function(keras_ldam.LDAMHinge([5, 5]), jit_compile=True)
        assert np.isnan(float(compiled(tf.constant([2**32, 0], tf.int64), z)))


def test_focal_is_linear_in_soft_labels(batch):
    _, z = batch
    first, second = np.eye(4, dtype=np.float32)[[0] * 64], np.eye(4, dtype=np.float32)[[3] * 64]
    for form in ("softmax", "sigmoid"):
        mixed, one, two = (
            values(losses.focal(y, z, gamma=2.0, form=form))
            for y in (0.3 * first + 0.7 * second, first, second)
        )
        np.testing.assert_allclose(mixed, 0.3 * one + 0.7 * two, rtol=1e-5)


@pytest.mark.parametrize("low", [-200.0, -np.inf])
def test_focal_of_a_class_without_a_share_is_finite(low):
    labels, z = np.array([[1.0, 0.0]]), np.array([[200.0, low]], np.float32)
    np.testing.assert_array_equal(values(losses.focal(labels, z, gamma=2.0)), 0)
    slope = gradient(lambda z: ops.sum(losses.focal(labels, z, gamma=2.0)), z)
    np.testing.assert_array_equal(slope, 0)


def test_each_decision_of_several_labels_has_the_weight_of_its_own_class():
    y = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    z = np.array([[0.3, -0.2, 0.1], [0.5, 0.4, -2.0]], np.float32)
    weights = np.array([0.5, 1.0, 1.5])
    loss = keras_ldam.Focal([9, 5, 2], gamma=0.0, form="sigmoid", class_weights=weights)
    each = np.log1p(np.exp(np.where(y == 1, -z, z)))
    assert float(loss(y, z)) == pytest.approx((each * weights).sum(axis=1).mean(), rel=1e-6)
    # One class per example is weighed as in Cui et al., 2019, all its decisions alike.
    one = keras_ldam.Focal([9, 5, 2], gamma=0.0, form="sigmoid", class_weights=weights)
    rows = np.log1p(np.exp(np.where(np.eye(3)[[2, 0]] == 1, -z, z))).sum(axis=1)
    expected = (rows * weights[[2, 0]]).sum() / weights[[2, 0]].sum()
    assert float(one(np.array([2, 0]), z)) == pytest.approx(expected, rel=1e-6)
    over_data = (each * weights).sum(axis=1).mean() / (np.array([9, 5, 2]) @ weights / 16)
    for factor in (1, 7):
        loss = keras_ldam.Focal(
            [9, 5, 2],
            gamma=0.0,
            form="sigmoid",
            class_weights=factor * weights,
            reduction="mean_over_data",
        )
        assert float(loss(y, z)) == pytest.approx(over_data, rel=1e-6)


def test_class_weights_of_one_call_take_the_place_of_the_loss_s_own(batch):
    y, z = batch
    loss = keras_ldam.LDAM(COUNTS)
    weights = np.array([0.1, 0.5, 1.4, 2.0], np.float32)
    expected = float(keras_ldam.LDAM(COUNTS, class_weights=weights)(y, z))
    assert float(loss(y, z, class_weights=weights)) == pytest.approx(expected, rel=1e-6)
    assert float(loss(y, z)) != pytest.approx(expected, rel=1e-3)

    def step(y, z, weights):
        return loss(y, z, class_weights=weights)

    compiled = jitted(step)
    for each in (weights, np.ones(4, np.float32)):
        given = float(compiled(y, z, each))
        assert given == pytest.approx(float(loss(y, z, class_weights=each)), rel=1e-5)


def test_class_weights_with_keys_are_put_into_class_order():
    loss = keras_ldam.LDAM({0: 1000, 2: 10, 1: 100}, class_weights={0: 0.001, 2: 0.1, 1: 0.01})
    np.testing.assert_allclose(values(loss.class_weights), [0.001, 0.01, 0.1], rtol=1e-6)
    assert loss.counts.tolist() == [1000, 100, 10]
    with pytest.raises(ValueError, match="`class_weights` with keys must have as keys the classes"):
        keras_ldam.LDAM([5, 5], class_weights={"cat": 1.0, "dog": 1.0})


def test_a_loss_of_each_name_takes_its_own_settings():
    settings = {"max_margin": 0.3, "scale": 10.0, "gamma": 2.0, "tau": 0.5, "other": None}
    settings |= {"vs_gamma": 0.2, "gradual": True}
    made = {name: named.make(COUNTS, settings) for name, named in losses.LOSSES.items()}
    assert made["ldam"].max_margin == made["ldam_hinge"].max_margin == 0.3
    assert made["ldam"].gradual and made["uniform_margin"].gradual
    assert made["uniform_margin"].margins.tolist() == pytest.approx([0.3] * 4)
    assert made["sigmoid_focal"].form == "sigmoid" and made["focal"].gamma == 2.0
    assert (made["vector_scaling"].gamma, made["vector_scaling"].tau) == (0.2, 0.5)
    cosines = {name for name, named in losses.LOSSES.items() if named.wants_cosines}
    assert cosines == {"ldam", "ldam_adjusted", "uniform_margin", "ldam_hinge", "hinge"}
    adjusted = {name for name, loss in made.items() if loss.tau == 0.5}
    assert adjusted == {"ldam_adjusted", "logit_adjusted", "vector_scaling"}
    drawn = made["logit_adjusted"].learned_prior([1, 1, 1, 1])  # After re-sampling.
    np.testing.assert_allclose(drawn * np.sqrt(COUNTS), drawn[0] * np.sqrt(500))


# ----------------------------------------------------------------------------- gradual margins


def share_of(y, z, scale, tau=0.0):
    """1 - H/H₀ of a batch, clipped to [0, 1]."""
    surprise = -np.log(np.array(COUNTS) / np.sum(COUNTS))
    entropy = oracle.logit_adjusted(y, z, COUNTS, tau, scale).mean()
    return float(np.clip(1 - entropy / min(surprise[y].mean(), np.log(len(COUNTS))), 0, 1))


@pytest.mark.parametrize(("learned", "tau"), [(-1.0, 0.0), (0.1, 0.0), (0.2, 1.0), (1.0, 0.0)])
def test_margins_grow_with_what_has_been_learned(learned, tau, batch):
    y, z = batch
    z = 0.1 * z + learned * np.eye(4, dtype=np.float32)[y]
    loss = keras_ldam.LDAM(COUNTS, tau=tau)
    share = share_of(y, z, loss.scale, tau)
    assert {-1.0: share == 0, 1.0: share > 0.99}.get(learned, 0.05 < share < 0.95)
    margins, offsets = share * oracle.margins(COUNTS, 0.5), oracle.adjustment(COUNTS, tau)
    expected = oracle.ldam(y, z, margins, loss.scale, offsets).mean()
    for labels in (y, np.eye(4, dtype=np.float32)[y]):
        assert float(loss(labels, z)) == pytest.approx(expected, rel=1e-4)
        assert float(jitted(loss)(labels, z)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("labels", [[0, 1], [0] * 9 + [1]])
def test_nothing_is_demanded_of_a_network_that_gives_no_more_than_the_frequencies(labels):
    # Of batches that are drawn evenly, and of those that are drawn as they come.
    shares = np.bincount(labels) / len(labels)
    z = np.tile(np.log(shares) / 15, (len(labels), 1)).astype("float32")
    entropy = float(-np.sum(shares * np.log(shares)))
    assert float(keras_ldam.LDAM([900, 100])(np.array(labels), z)) == pytest.approx(entropy)


def test_the_entropy_of_soft_labels_is_no_lack_of_learning():
    soft = np.eye(2, dtype="float32")[[0] * 9 + [1]] * 0.9 + 0.05  # Smoothed.
    loss = keras_ldam.LDAM([900, 100])
    perfect = np.log(soft) / loss.scale
    lowered = oracle.log_softmax(loss.scale * (perfect - soft * loss.margins))
    expected = -(soft * lowered).sum(axis=1).mean()  # With whole margins.
    assert float(loss(soft, perfect)) == pytest.approx(expected, rel=1e-4)


def test_the_weight_of_a_single_example_cancels_without_an_axis_for_it_too():
    for reduction in ("mean_with_sample_weight", None):
        loss = keras_ldam.CrossEntropy([3, 1], class_weights=[0.5, 2.5], reduction=reduction)
        expected = np.squeeze(keras.ops.convert_to_numpy(loss([1], [[0.0, 0.0]])))
        found = keras.ops.convert_to_numpy(loss(1, [0.0, 0.0]))
        assert found.shape == () and found == pytest.approx(expected)


def test_the_share_of_the_margins_has_no_gradient(batch):
    y, z = batch
    z = 0.1 * z + 0.2 * np.eye(4, dtype=np.float32)[y]
    loss = keras_ldam.LDAM(COUNTS, reduction=None)
    margins = share_of(y, z, loss.scale) * keras_ldam.margins(COUNTS)
    whole = gradient(lambda z: losses.ldam(y, z, margins, scale=loss.scale), z)
    np.testing.assert_allclose(gradient(lambda z: loss(y, z), z), whole, rtol=1e-3, atol=1e-5)


def test_the_official_behaviour_is_that_of_the_paper(batch):
    y, z = batch
    expected = oracle.ldam(y, z, oracle.margins(COUNTS, 0.5), SCALE).mean()
    assert float(keras_ldam.LDAM(COUNTS, **OFFICIAL)(y, z)) == pytest.approx(expected, rel=1e-5)


def test_what_weighs_nothing_does_not_move_the_margins_of_others(batch):
    y, z = batch
    loss = keras_ldam.LDAM(COUNTS)
    alone = float(loss(y[:32], z[:32]))
    weights = np.repeat([1.0, 0.0], 32).astype("float32")
    assert float(loss(y, z, weights)) == pytest.approx(alone, rel=1e-5)
    rows = np.eye(4, dtype=np.float32)[y]
    rows[32:] = 0
    assert float(loss(rows, z)) == pytest.approx(alone, rel=1e-5)


def test_a_batch_without_any_label_moves_nothing():
    z = np.array([[0.4, 0.1, 0.0, 0.2]], np.float32)
    loss = keras_ldam.LDAM(COUNTS)
    void = np.zeros((1, 4), np.float32)
    np.testing.assert_array_equal(gradient(lambda z: loss(void, z), z), 0)


def test_nan_is_a_matter_of_its_own_example(batch):
    y, z = (part[:4] for part in batch)
    z = z.copy()
    z[2, 1] = np.nan
    each = values(keras_ldam.LDAM(COUNTS, reduction=None)(y, z))
    assert np.isnan(each).tolist() == [False, False, True, False]
    assert np.isnan(float(keras_ldam.LDAM(COUNTS)(y, z)))


def test_labels_may_be_true_and_false(batch):
    _, z = batch
    y = np.arange(64) % 2 == 1
    for loss in (keras_ldam.LDAM([80, 4]), keras_ldam.CrossEntropy()):
        whole = float(loss(y.astype("int32"), z[:, :2]))
        assert float(loss(y, z[:, :2])) == pytest.approx(whole)


# ----------------------------------------------------------------------------- small batches


def test_the_weights_of_small_batches_give_rare_classes_less_and_those_of_the_data_do_not():
    # Three examples of a frequent class, of weight 1/2, and one of a rare class, of weight 5/2;
    # how much of the loss is the rare one's, as one batch, as two, and as four.
    y, z = np.array([0, 0, 0, 1]), np.array([[9.0, -9.0]] * 4, np.float32)  # Only it is wrong.
    weights, wrong = [0.5, 2.5], 18.0
    for reduction, shares in (
        ("mean_with_sample_weight", {4: 2.5 / 4, 2: 2.5 / 3 / 2, 1: 1 / 4}),
        ("mean_over_data", {4: 2.5 / 4, 2: 2.5 / 4, 1: 2.5 / 4}),
        ("sum_over_batch_size", {4: 2.5 / 4, 2: 2.5 / 4, 1: 2.5 / 4}),  # Of mean 1, as it happens.
    ):
        loss = keras_ldam.CrossEntropy([3, 1], class_weights=weights, reduction=reduction)
        for size, share in shares.items():
            parts = [loss(y[i : i + size], z[i : i + size]) for i in range(0, 4, size)]
            found = np.mean([float(part) for part in parts]) / wrong
            assert found == pytest.approx(share, rel=1e-5), (reduction, size)


def test_weights_of_any_size_have_the_mean_one_over_the_data(batch):
    y, z = batch
    counts, weights = np.array(COUNTS, np.float64), np.array([0.3, 0.9, 1.2, 1.6])
    relative = weights / (counts * weights).sum() * counts.sum()
    expected = (relative[y] * oracle.cross_entropy(y, z)).mean()
    rows = np.eye(4, dtype=np.float32)[y]
    for factor in (1.0, 7.0):
        loss = keras_ldam.CrossEntropy(
            COUNTS, class_weights=factor * weights, reduction="mean_over_data"
        )
        for labels in (y, rows):
            assert float(loss(labels, z)) == pytest.approx(expected, rel=1e-5)
    assert float(jitted(loss)(y, z)) == pytest.approx(expected, rel=1e-5)
    # Weights of a call are treated alike, and so is a loss without any.
    plain = keras_ldam.CrossEntropy(COUNTS, reduction="mean_over_data")
    given = plain(y, z, class_weights=ops.convert_to_tensor(weights, "float32"))
    assert float(given) == pytest.approx(expected, rel=1e-5)
    uncounted = keras_ldam.CrossEntropy(reduction="mean_over_data")
    assert float(plain(y, z)) == pytest.approx(float(uncounted(y, z)), rel=1e-6)


def trained(reduction, *, batch_size, accumulated=None):
    """The weights of a model after one step on 64 examples, in pieces of `batch_size`."""
    y = np.repeat([0, 0, 0, 1, 0, 0, 2, 3], 8)
    x = (np.eye(5)[y] + np.linspace(-1, 1, 320).reshape(64, 5)).astype("float32")
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, kernel_initializer="ones")])
    loss = keras_ldam.LogitAdjusted(
        COUNTS, class_weights=keras_ldam.class_weights(COUNTS), reduction=reduction
    )
    model.compile(keras.optimizers.SGD(0.5, gradient_accumulation_steps=accumulated), loss=loss)
    order = np.random.default_rng(3).permutation(64)
    model.fit(x[order], y[order], batch_size=batch_size, shuffle=False, verbose=0)
    return np.concatenate([values(each).ravel() for each in model.trainable_variables])


def test_one_batch_of_64_equals_16_accumulated_ones_of_4():
    whole = trained("mean_over_data", batch_size=64)
    pieces = trained("mean_over_data", batch_size=4, accumulated=16)
    np.testing.assert_allclose(pieces, whole, rtol=1e-5, atol=1e-6)
    apart = trained("mean_with_sample_weight", batch_size=4, accumulated=16)
    whole = trained("mean_with_sample_weight", batch_size=64)
    assert abs(apart - whole).max() > 0.01


@pytest.mark.parametrize("reduction", ["mean_with_sample_weight", "mean_over_data", "sum"])
def test_the_loss_of_no_examples_is_the_number_0(reduction):
    nothing = np.zeros((0,), "int32"), np.zeros((0, 4), "float32")
    loss = keras.ops.convert_to_numpy(keras_ldam.LDAM(COUNTS, reduction=reduction)(*nothing))
    assert loss.shape == () and loss == 0
    assert tuple(keras_ldam.LDAM(COUNTS, reduction=None)(*nothing).shape) == (0,)
