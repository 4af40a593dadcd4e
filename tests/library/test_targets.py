"""Targets of every form: one score, several labels, void pixels, axes. Runs on every backend."""

import keras
import numpy as np
import oracle
import pytest
from keras import ops

import keras_ldam
from keras_ldam import evaluation, keras_internals, losses

COUNTS = [90, 10]
SIDES = [[90, 10], [40, 60], [97, 3]]
"""Negatives and positives of three labels."""


def values(tensor):
    return ops.convert_to_numpy(tensor)


def jitted(function):
    """A function inside compiled code, on the backend in use."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    if keras.backend.backend() == "torch":
        return function
    import tensorflow as tf

    return tf.function(function)


def gradient(loss, z):
    """d loss / dz on the backend in use."""
    if keras.backend.backend() == "jax":
        import jax

        return np.asarray(jax.grad(loss)(z))
    if keras.backend.backend() == "torch":
        import torch

        z = torch.tensor(z, requires_grad=True)
        loss(z).backward()
        return z.grad.numpy()
    import tensorflow as tf

    z = tf.constant(z)
    with tf.GradientTape() as tape:
        tape.watch(z)
        lost = loss(z)
    return tape.gradient(lost, z).numpy()


EACH = {
    "cross_entropy": lambda counts, **how: keras_ldam.CrossEntropy(counts, **how),
    "focal": lambda counts, **how: keras_ldam.Focal(counts, gamma=2.0, **how),
    "ldam": lambda counts, **how: keras_ldam.LDAM(counts, gradual=False, **how),
    "gradual": lambda counts, **how: keras_ldam.LDAM(counts, **how),
    "adjusted": lambda counts, **how: keras_ldam.LDAM(counts, tau=0.5, gradual=False, **how),
    "logit": lambda counts, **how: keras_ldam.LogitAdjusted(counts, scale=9.0, **how),
    "vector": lambda counts, **how: keras_ldam.VectorScaling(counts, scale=9.0, **how),
    "hinge": lambda counts, **how: keras_ldam.LDAMHinge(counts, **how),
}
WEIGHTS = {"class_weights": [0.3, 1.7]}


@pytest.fixture
def binary(rng):
    return rng.integers(0, 2, size=64), rng.uniform(-1, 1, size=(64, 1)).astype("float32")


# ----------------------------------------------------------------------------- one score


@pytest.mark.parametrize("name", sorted(EACH.keys() - {"vector"}))
def test_one_score_is_two_classes(name, binary):
    y, z = binary
    loss = EACH[name](COUNTS, **WEIGHTS)
    expected = float(loss(y, np.concatenate([-z / 2, z / 2], axis=1)))
    one_hot = np.eye(2, dtype="float32")[y]
    every = (y, y[:, None], y.astype("float32"), y[:, None] == 1, one_hot)
    for labels in every if name == "gradual" else (y, one_hot):
        assert float(loss(labels, z)) == pytest.approx(expected, rel=1e-5)
    if name == "gradual":
        for labels in (y[:, None], y.astype("float32")):
            assert float(jitted(loss)(labels, z)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", sorted(EACH.keys()))
def test_a_score_of_exactly_zero_has_the_slope_of_its_neighbors(name):
    loss = EACH[name](COUNTS, reduction=None)
    z = np.array([[0.0], [-0.0], [1e-6], [-1e-6]], "float32")
    for labels in np.zeros(4, int), np.ones(4, int):
        slopes = gradient(lambda z, y=labels: ops.sum(loss(y, z)), z)[:, 0]
        assert abs(slopes[2]) > 1e-3
        np.testing.assert_allclose(slopes, slopes[2], rtol=1e-3)


def test_the_first_step_of_a_head_of_zeros_is_that_of_keras_own_loss():
    x, y = np.eye(4, dtype="float32"), np.array([0, 0, 0, 1])
    found = []
    for loss in (keras_ldam.CrossEntropy(COUNTS), keras.losses.BinaryCrossentropy(True)):
        head = keras.layers.Dense(1, kernel_initializer="zeros")
        model = keras.Sequential([keras.Input((4,)), head])
        model.compile(keras.optimizers.SGD(1.0), loss)
        model.fit(x, y, batch_size=4, verbose=0)
        found.append(np.concatenate([part.ravel() for part in model.get_weights()]))
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_ldam_of_one_score_equals_the_oracle(binary):
    y, z = binary
    margins = oracle.margins(COUNTS, 0.5)
    expected = oracle.binary_ldam(y, z[:, 0], margins, 15.0)
    loss = keras_ldam.LDAM(COUNTS, gradual=False, reduction=None)
    np.testing.assert_allclose(values(loss(y, z)), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(values(losses.ldam(y, z, margins, scale=15.0)), expected, atol=1e-6)


def test_vector_scaling_divides_one_score_by_the_divisor_of_its_label(binary):
    y, z = binary
    expected = oracle.binary_vector_scaling(y, z[:, 0], COUNTS, 0.4, 1.25, 9.0)
    how = {"gamma": 0.4, "tau": 1.25, "scale": 9.0}
    loss = keras_ldam.VectorScaling(COUNTS, reduction=None, **how)
    np.testing.assert_allclose(values(loss(y, z)), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        values(losses.vector_scaling(y, z, COUNTS, **how)), expected, rtol=1e-5, atol=1e-6
    )
    several = keras_ldam.VectorScaling([COUNTS], reduction=None, **how)
    np.testing.assert_allclose(values(several(y[:, None], z))[:, 0], expected, rtol=1e-5, atol=1e-6)
    shares = values(loss(np.full_like(z, 0.25), z))
    sides = [
        oracle.binary_vector_scaling(0 * y + j, z[:, 0], COUNTS, 0.4, 1.25, 9.0) for j in (0, 1)
    ]
    np.testing.assert_allclose(shares, 0.75 * sides[0] + 0.25 * sides[1], rtol=1e-5, atol=1e-6)


def test_opposite_cosines_are_one_cosine_of_twice_the_scale_and_half_the_margin(binary):
    y, z = binary
    two = keras_ldam.LDAM(COUNTS, scale=15.0, max_margin=0.5)
    one = keras_ldam.LDAM(COUNTS, scale=30.0, max_margin=0.25)
    opposite = np.concatenate([-z, z], axis=1)
    assert float(one(y, z)) == pytest.approx(float(two(y, opposite)), rel=1e-5)


def test_one_score_is_keras_own_binary_cross_entropy(binary):
    y, z = binary
    theirs = keras.losses.BinaryCrossentropy(from_logits=True)(y[:, None].astype("float32"), z)
    for loss in (keras_ldam.CrossEntropy(COUNTS), keras_ldam.CrossEntropy()):
        assert float(loss(y, z)) == pytest.approx(float(theirs), rel=1e-5)
    focal = keras.losses.BinaryFocalCrossentropy(gamma=2.0, from_logits=True)
    theirs = float(focal(y[:, None].astype("float32"), z))
    assert float(keras_ldam.Focal(COUNTS, gamma=2.0)(y, z)) == pytest.approx(theirs, rel=1e-5)
    smooth = np.where(y == 1, 0.9, 0.2).astype("float32")[:, None]
    theirs = float(keras.losses.BinaryCrossentropy(from_logits=True)(smooth, z))
    assert float(keras_ldam.CrossEntropy(COUNTS)(smooth, z)) == pytest.approx(theirs, rel=1e-5)


def test_the_sigmoid_focal_loss_of_one_score_is_one_decision(binary):
    y, z = binary
    theirs = keras.losses.BinaryFocalCrossentropy(gamma=1.0, from_logits=True)
    rows = y[:, None].astype("float32")
    expected = pytest.approx(float(theirs(rows, z)), rel=1e-5)
    for loss in (
        keras_ldam.Focal(gamma=1.0, form="sigmoid"),
        keras_ldam.Focal(COUNTS, gamma=1.0, form="sigmoid"),
    ):
        for labels in (rows, y, y[:, None]):
            assert float(loss(labels, z)) == expected
    for labels in (rows, y):
        alone = keras_ldam.losses.focal(labels, z, gamma=1.0, form="sigmoid")
        assert float(ops.mean(alone)) == expected
    weighted = keras_ldam.Focal(COUNTS, form="sigmoid", class_weights=[1, 9])
    each = values(keras_ldam.Focal(form="sigmoid", reduction=None)(y, z))
    expected = pytest.approx((each * (1 + 8 * y)).sum() / (1 + 8 * y).sum(), rel=1e-5)
    for labels in (rows, y):
        assert float(weighted(labels, z)) == expected
        np.testing.assert_array_equal(values(weighted.example_weights(labels, z)), 1 + 8 * y)


def test_one_score_is_judged_like_two(binary):
    y, z = binary
    pair = np.concatenate([-z / 2, z / 2], axis=1)
    for make in (
        lambda: keras_ldam.ClassErrors(COUNTS, per_class=True),
        lambda: keras_ldam.ClassMargins(2),
    ):
        one, two = make(), make()
        one.update_state(y[:, None], z)
        two.update_state(y, pair)
        found, expected = ({k: float(v) for k, v in m.result().items()} for m in (one, two))
        assert found == pytest.approx(expected, nan_ok=True)
    margins = values(keras_ldam.example_margins(y, z))
    np.testing.assert_allclose(margins, np.where(y == 1, z[:, 0], -z[:, 0]), rtol=1e-6)


def test_a_model_of_one_score_is_evaluated_like_one_of_two(rng):
    x, y = rng.normal(size=(30, 3)).astype("float32"), np.repeat([0, 1], [24, 6])
    inputs = keras.Input((3,))
    z = keras_ldam.CosineDense(1)(inputs)
    one = keras.Model(inputs, z)
    two = keras.Model(inputs, keras.layers.Concatenate()([-z / 2, z / 2]))
    for judge in (evaluation.class_errors, evaluation.diagnose):
        found, expected = (judge(model, [(x, y)], [24, 6]) for model in (one, two))
        for part in found if isinstance(found, tuple) else (found,):
            part.get("margins", {}).pop("unit", None)
        for part in expected if isinstance(expected, tuple) else (expected,):
            part.get("margins", {}).pop("unit", None)
        assert found == expected


@pytest.mark.parametrize(
    "metric", [keras.metrics.AUC, keras.metrics.Recall, lambda: keras.metrics.Precision([0.3])]
)
def test_metrics_of_keras_see_the_sigmoid_of_one_score(metric, binary):
    y, z = binary
    ours, theirs = keras_ldam.OfProbabilities(metric(), scale=15.0), metric()
    ours.update_state(y, z)
    theirs.update_state(y, 1 / (1 + np.exp(-15.0 * z[:, 0])))
    np.testing.assert_allclose(values(ours.result()), values(theirs.result()), rtol=1e-5)


def test_a_model_of_one_score_is_re_weighted_in_fit(rng):
    x, y = rng.normal(size=(40, 3)).astype("float32"), np.repeat([0, 1], [36, 4])
    model = keras.Sequential([keras.Input((3,)), keras_ldam.CosineDense(1)])
    loss = keras_ldam.LDAM([36, 4])
    model.compile(keras.optimizers.SGD(0.0), loss, metrics=[keras_ldam.ClassErrors([36, 4])])
    drw = keras_ldam.DRW(start_epoch=1, verbose=0)
    logs = model.fit(x, y, batch_size=40, epochs=2, verbose=0, callbacks=[drw]).history
    z = model.predict(x, verbose=0)
    again = keras_ldam.LDAM([36, 4])
    assert logs["loss"][0] == pytest.approx(float(again(y, z)), rel=1e-4)
    again.class_weights.assign(keras_ldam.class_weights([36, 4]))
    assert logs["loss"][1] == pytest.approx(float(again(y, z)), rel=1e-4)
    assert logs["loss"][0] != pytest.approx(logs["loss"][1], rel=1e-3)
    wrong = (z[:, 0] > 0) != y
    expected = (wrong[:36].mean() + wrong[36:].mean()) / 2
    assert logs["balanced_error"][0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 2], r"Labels of a single score must be 0 or 1.*Received: 2"),
        ([0, -1], r"Received: -1; `ignore_class=-1` leaves it out"),
        ([0, np.nan], "Received: nan"),
        ([0, 1, 1], r"must hold labels 0 and 1 of shape \(2,\). Received: shape \(3,\)"),
        (np.eye(3)[:2], r"must hold labels 0 and 1 of shape \(2,\). Received: shape \(2, 3\)"),
    ],
)
def test_labels_that_do_not_fit_one_score_get_a_sentence(labels, message):
    for judge in (keras_ldam.LDAM(COUNTS), keras_ldam.ClassErrors(COUNTS).update_state):
        with pytest.raises(ValueError, match=message):
            judge(np.array(labels), np.zeros((2, 1), "float32"))


# ----------------------------------------------------------------------------- several labels


@pytest.fixture
def several(rng):
    return rng.integers(0, 2, size=(32, 3)), rng.uniform(-1, 1, size=(32, 3)).astype("float32")


@pytest.mark.parametrize("name", sorted(set(EACH) - {"gradual"}))
def test_several_labels_are_as_many_problems_of_two_classes(name, several, rng):
    y, z = several
    weights = rng.uniform(0.5, 2.0, size=(3, 2))
    loss = EACH[name](SIDES, class_weights=weights, reduction=None)
    sums = EACH[name](SIDES, class_weights=weights)
    alone = [
        EACH[name](c, class_weights=w, reduction=None) for c, w in zip(SIDES, weights, strict=True)
    ]
    expected = np.stack([values(alone[j](y[:, j], z[:, j : j + 1])) for j in range(3)], axis=1)
    own = np.take_along_axis(weights[None], y[..., None], axis=-1)[..., 0]
    for labels in (y, y.astype("float32")):
        np.testing.assert_allclose(values(loss(labels, z)), expected, rtol=1e-4, atol=1e-6)
    if name == "ldam":
        whole = float(jitted(sums)(y == 1, z))
        assert whole == pytest.approx(expected.sum() / own.sum(), rel=1e-5)


def test_ldam_of_several_labels_equals_the_oracle(several):
    y, z = several
    each = [
        oracle.binary_ldam(y[:, j], z[:, j], oracle.margins(SIDES[j], 0.5), 15.0) for j in range(3)
    ]
    loss = keras_ldam.LDAM(SIDES, gradual=False, reduction=None)
    np.testing.assert_allclose(values(loss(y, z)), np.stack(each, axis=1), rtol=1e-5, atol=1e-6)
    whole = keras_ldam.LDAM(SIDES, class_weights=keras_ldam.class_weights(SIDES), gradual=False)
    weights = np.stack([keras_ldam.class_weights(c)[y[:, j]] for j, c in enumerate(SIDES)], axis=1)
    expected = oracle.weighted_mean(np.stack(each, axis=1), weights.astype("float64"))
    assert float(whole(y, z)) == pytest.approx(expected, rel=1e-5)


def test_margins_of_several_labels_grow_with_what_has_been_learned(several):
    y, z = several
    z = (0.1 * z + 0.1 * (2 * y - 1)).astype("float32")
    loss = keras_ldam.LDAM(SIDES)
    entropy = np.logaddexp(0, -15.0 * np.where(y == 1, z, -z)).mean()
    surprise = -np.log(np.array(SIDES) / 100.0)[np.arange(3), y].mean()
    share = 1 - entropy / min(surprise, np.log(2))
    assert 0.05 < share < 0.95
    margins = share * keras_ldam.margins(SIDES)
    each = [oracle.binary_ldam(y[:, j], z[:, j], margins[j], 15.0) for j in range(3)]
    assert float(loss(y, z)) == pytest.approx(np.mean(each), rel=1e-4)


def test_several_labels_without_weights_are_keras_own_binary_cross_entropy(several):
    y, z = several
    theirs = keras.losses.BinaryCrossentropy(from_logits=True)(y.astype("float32"), z)
    assert float(keras_ldam.CrossEntropy(SIDES)(y, z)) == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize(("name", "kind"), [("gradual", "int32"), ("focal", "float32")])
def test_unknown_answers_count_nowhere(name, kind, several, rng):
    y, z = several
    y = y.astype(kind)
    known = rng.random(y.shape) < 0.7
    void, broken = np.where(known, y, -1), np.where(known, z, np.nan).astype("float32")
    loss = EACH[name](SIDES, class_weights=keras_ldam.class_weights(SIDES), ignore_class=-1)
    expected = float(loss(y, z, known.astype("float32")))
    assert float(loss(void, z)) == pytest.approx(expected, rel=1e-5)
    compiled = jitted(loss)
    assert float(compiled(void, broken)) == pytest.approx(expected, rel=1e-5)
    slope = gradient(lambda z: loss(void, z), z)
    assert np.all(slope[~known] == 0) and np.any(slope[known] != 0)
    nothing = np.full_like(y, -1)
    assert float(loss(nothing, z)) == float(compiled(nothing, z)) == 0
    np.testing.assert_array_equal(gradient(lambda z: loss(nothing, z), z), 0)


def test_weights_of_examples_and_of_their_labels_multiply(several, rng):
    y, z = several
    loss = keras_ldam.CrossEntropy(SIDES)
    each = np.logaddexp(0, -np.where(y == 1, z, -z))
    examples, labels = rng.uniform(size=32), rng.uniform(size=(32, 3))
    for given, weights in ((examples, examples[:, None] * np.ones(3)), (labels, labels)):
        expected = (each * weights).sum() / weights.sum()
        assert float(loss(y, z, given)) == pytest.approx(expected, rel=1e-5)
    column = float(loss(y, z, examples[:, None]))
    assert column == pytest.approx(float(loss(y, z, examples)), rel=1e-6)


def test_errors_of_several_labels_are_those_of_both_sides(several):
    y, z = several
    counts = [[9, 200], [9, 50], [9, 5]]
    void = np.where(np.arange(32)[:, None] < 4, -1, y)
    metric = keras_ldam.ClassErrors(counts, per_class=True, ignore_class=-1)
    for part in (slice(0, 16), slice(16, 32)):
        metric.update_state(void[part], z[part])
    y, wrong = y[4:], ((z > 0) != y)[4:]
    each = [
        (wrong[:, j][y[:, j] == 1].mean() + wrong[:, j][y[:, j] == 0].mean()) / 2 for j in range(3)
    ]
    found = {name: float(value) for name, value in metric.result().items()}
    assert found["error"] == pytest.approx(wrong.mean())
    assert found["balanced_error"] == pytest.approx(np.mean(each))
    groups = [found[f"{name}_error"] for name in ("many", "medium", "few")]
    assert groups == pytest.approx(each) == [found[f"error_{j}"] for j in range(3)]


def test_probabilities_are_judged_by_the_threshold_that_is_given(several, binary):
    for (y, z), counts in ((several, SIDES), (binary, COUNTS)):
        scored = keras_ldam.ClassErrors(counts, per_class=True)
        judged = keras_ldam.ClassErrors(counts, per_class=True, threshold=0.5)
        scored.update_state(y, z)
        judged.update_state(y, 1 / (1 + np.exp(-z)))
        assert judged.get_config()["threshold"] == 0.5
        found, expected = ({k: float(v) for k, v in m.result().items()} for m in (judged, scored))
        assert found == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("class_id", [None, 2])
def test_metrics_of_keras_see_the_sigmoid_of_each_label(class_id, several):
    y, z = several
    void = np.where(np.arange(32)[:, None] < 4, -1, y)
    ours = keras_ldam.OfProbabilities(
        keras.metrics.AUC(), scale=4.0, class_id=class_id, multi_label=True, ignore_class=-1
    )
    ours.update_state(void, z)
    which = slice(None) if class_id is None else class_id
    theirs = keras.metrics.AUC()
    theirs.update_state(y[4:, which].ravel(), (1 / (1 + np.exp(-4.0 * z[4:, which]))).ravel())
    assert float(ours.result()) == pytest.approx(float(theirs.result()), rel=1e-5)


def test_several_labels_are_re_weighted_in_fit_label_by_label_and_side_by_side(rng):
    x, y = rng.normal(size=(40, 5)).astype("float32"), rng.integers(0, 2, size=(40, 3))
    y[:2] = [[0, 0, 0], [1, 1, 1]]
    counts = keras_ldam.count(y, multi_label=True)
    model = keras.Sequential([keras.Input((5,)), keras_ldam.CosineDense(3)])
    model.compile(keras.optimizers.SGD(0.0), keras_ldam.LDAM(counts))
    drw = keras_ldam.DRW(start_epoch=1, weights="inverse", verbose=0)
    logs = model.fit(
        x, y, batch_size=40, epochs=2, verbose=0, validation_data=(x, y), callbacks=[drw]
    ).history
    z = model.predict(x, verbose=0)
    loss = keras_ldam.LDAM(counts)
    assert logs["loss"][0] == pytest.approx(float(loss(y, z)), rel=1e-4)
    weights = keras_ldam.class_weights(counts, kind="inverse")
    loss.class_weights.assign(weights)
    assert logs["loss"][1] == pytest.approx(float(loss(y, z)), rel=1e-4)
    np.testing.assert_allclose(values(model.loss.class_weights), weights)
    assert logs["val_loss"][0] == pytest.approx(logs["val_loss"][1], rel=1e-5)


def test_counts_of_labels_and_sides_make_margins_and_weights_label_by_label():
    margins, weights = keras_ldam.margins(SIDES), keras_ldam.class_weights(SIDES)
    for j, counts in enumerate(SIDES):
        np.testing.assert_array_equal(margins[j], keras_ldam.margins(counts))
        np.testing.assert_array_equal(weights[j], keras_ldam.class_weights(counts))
    groups = keras_ldam.shot_groups([[9, 200], [9, 50], [900, 5]])
    assert [list(group) for group in groups.values()] == [[0], [1], [2]]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: keras_ldam.LDAM([[9, 1], [10, 0]]),
            "Received: 0 for the positives of label 1.*drop",
        ),
        (lambda: keras_ldam.LDAM([[0, 9], [5, 5]]), "Received: 0 for the negatives of label 0"),
        (lambda: keras_ldam.LDAM(SIDES, test_prior=[1, 1, 1]), "classes that exclude each other"),
        (lambda: keras_ldam.AsymmetricFocal([5, 5, 5]), "must be negatives and positives"),
        (lambda: keras_ldam.AsymmetricFocal(gamma_negative=-1), "`gamma_negative` must be a"),
        (lambda: keras_ldam.AsymmetricFocal(shift=1.0), "`shift` must be a number in"),
        (lambda: keras_ldam.MeanAveragePrecision([5, 5, 5]), "must be negatives and positives"),
        (lambda: keras_ldam.MeanAveragePrecision(SIDES, bins=1), "`bins` must be a whole"),
        (lambda: keras_ldam.LDAM(SIDES, class_weights=[1, 1, 1]), "must be 3 × 2 finite numbers"),
        (
            lambda: keras_ldam.CrossEntropy(SIDES, class_weights={0: 1, 1: 2, 2: 3}),
            r"must be 3 × 2 finite numbers of at least 0. Received: \{0: 1",
        ),
        (
            lambda: keras_ldam.CrossEntropy(SIDES, ignore_class=0.5),
            "`ignore_class` must be a whole",
        ),
        (lambda: keras_ldam.ClassErrors(COUNTS, axis=None), "`axis` must be a whole number"),
        (
            lambda: keras_ldam.LDAM(SIDES)(np.zeros((2, 3)), np.zeros((2, 2))),
            "must have 3 labels on its last axis",
        ),
        (
            lambda: keras_ldam.LDAM(SIDES)(np.zeros(2), np.zeros((2, 3))),
            r"labels 0 and 1 of shape \(2, 3\). Received: shape \(2,\)",
        ),
        (lambda: keras_ldam.LDAM(SIDES)([[0, 1, np.nan]], np.zeros((1, 3))), "Received: nan"),
        (
            lambda: keras_ldam.LDAM(SIDES)([[0, 1, -1]], np.zeros((1, 3))),
            "`ignore_class=-1` leaves",
        ),
    ],
)
def test_what_does_not_fit_several_labels_gets_a_sentence(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def asymmetric(y, z, positive, negative, shift):
    """The formula of Ridnik et al., in float64."""
    p = 1 / (1 + np.exp(-z.astype("float64")))
    low = np.maximum(p - shift, 0)
    return np.where(y == 1, -((1 - p) ** positive) * np.log(p), -(low**negative) * np.log(1 - low))


@pytest.mark.parametrize(
    ("positive", "negative", "shift"), [(0, 4, 0.05), (1, 2, 0), (0.5, 0.5, 0)]
)
def test_the_asymmetric_focal_loss_equals_its_formula(positive, negative, shift, several):
    y, z = several
    z = 5 * z
    how = {"gamma_positive": positive, "gamma_negative": negative, "shift": shift}
    expected = asymmetric(y, z, positive, negative, shift)
    for labels in (y, y.astype("float32")):
        found = values(keras_ldam.asymmetric_focal(labels, z, **how))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    void = np.where(np.arange(32)[:, None] < 9, -1, y)
    plain = keras_ldam.AsymmetricFocal(ignore_class=-1, **how)
    assert float(plain(void, z)) == pytest.approx(expected[9:].mean(), rel=1e-4)
    weights = keras_ldam.class_weights(SIDES)
    loss = keras_ldam.AsymmetricFocal(SIDES, class_weights=weights, **how)
    own = weights[np.arange(3), y].astype("float64")
    assert float(loss(y, z)) == pytest.approx(oracle.weighted_mean(expected, own), rel=1e-4)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert float(again(y, z)) == float(loss(y, z))
    one = keras_ldam.AsymmetricFocal(COUNTS, **how)
    assert float(one(y[:, 0], z[:, :1])) == pytest.approx(expected[:, 0].mean(), rel=1e-4)


def test_the_asymmetric_focal_loss_is_keras_own_where_both_sides_have_one_focus(several):
    y, z = several
    theirs = keras.losses.BinaryFocalCrossentropy(gamma=2.0, from_logits=True)
    loss = keras_ldam.AsymmetricFocal(gamma_positive=2.0, gamma_negative=2.0, shift=0.0)
    assert float(loss(y, z)) == pytest.approx(float(theirs(y.astype("float32"), z)), rel=1e-5)


def test_the_asymmetric_focal_loss_is_finite_where_the_model_is_certain():
    y, z = np.array([[0, 1, 0, 1]]), np.array([[90.0, 90.0, -90.0, -90.0]], "float32")
    for gamma in (0.5, 4.0):
        loss = keras_ldam.AsymmetricFocal(gamma_positive=gamma, gamma_negative=gamma)
        assert np.isfinite(float(loss(y, z)))
        assert np.isfinite(gradient(lambda z, loss=loss: loss(y, z), z)).all()


@pytest.mark.parametrize("bins", [2000, 8])
def test_the_mean_average_precision_is_that_of_scikit_learn_on_scores_in_bins(bins, rng):
    oracle = pytest.importorskip("sklearn.metrics")
    y = (rng.random((60, 3)) < [0.5, 0.2, 0.1]).astype(int)
    z = (rng.normal(size=(60, 3)) + y).astype("float32")
    known, weights = rng.random((60, 3)) < 0.9, rng.uniform(0.5, 2, size=60)
    counts = [[9, 200], [9, 50], [9, 5]]
    metric = keras_ldam.MeanAveragePrecision(counts, per_label=True, bins=bins, ignore_class=-1)
    for part in (slice(0, 30), slice(30, 60)):
        metric.update_state(np.where(known, y, -1)[part], z[part], weights[part])
    binned = np.floor((z / (1 + np.abs(z)) + 1) * (bins / 2))

    def expected(scores):
        return [
            oracle.average_precision_score(
                y[known[:, j], j], scores[known[:, j], j], sample_weight=weights[known[:, j]]
            )
            for j in range(3)
        ]

    found = {name: float(value) for name, value in metric.result().items()}
    each = [found[f"average_precision_{j}"] for j in range(3)]
    assert each == pytest.approx(expected(binned), rel=1e-5)
    if bins == 2000:
        assert each == pytest.approx(expected(z), abs=0.01)
    groups = [found[f"{name}_average_precision"] for name in ("many", "medium", "few")]
    assert groups == each and found["mean_average_precision"] == pytest.approx(np.mean(each))
    again = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert again.get_config() == metric.get_config()


def test_a_label_without_a_positive_has_no_average_precision():
    metric = keras_ldam.MeanAveragePrecision([[9, 5], [9, 200]], per_label=True)
    metric.update_state([[0, 1], [0, 0]], [[0.3, 0.2], [0.1, 0.1]])
    found = {name: float(value) for name, value in metric.result().items()}
    assert found["mean_average_precision"] == found["many_average_precision"] == 1
    assert np.isnan([found["average_precision_0"], found["few_average_precision"]]).all()
    before = float(metric.result()["mean_average_precision"])
    metric.update_state([[1, 0]], [[0.2, np.nan]], sample_weight=[0])
    assert float(metric.result()["mean_average_precision"]) == before
    metric.update_state([[1, 0]], [[0.2, np.nan]])
    assert np.isnan(float(metric.result()["mean_average_precision"]))


def test_one_score_has_an_average_precision(binary):
    oracle = pytest.importorskip("sklearn.metrics")
    y, z = binary
    metric = keras_ldam.MeanAveragePrecision(COUNTS, bins=10**5)
    metric.update_state(y, z)
    found = {name: float(value) for name, value in metric.result().items()}
    expected = oracle.average_precision_score(y, z[:, 0])
    assert found == {"mean_average_precision": pytest.approx(expected, rel=1e-4)}


def test_probabilities_of_one_score_and_of_several_labels_are_sigmoids(rng):
    x = rng.normal(size=(6, 4)).astype("float32")
    for units, counts in ((1, COUNTS), (3, SIDES)):
        model = keras.Sequential([keras.Input((4,)), keras_ldam.CosineDense(units)])
        model.compile("sgd", keras_ldam.LDAM(counts))
        found = keras_ldam.with_probabilities(model).predict(x, verbose=0)
        z = model.predict(x, verbose=0)
        np.testing.assert_allclose(found, 1 / (1 + np.exp(-15.0 * z)), rtol=1e-5)


# ----------------------------------------------------------------------------- dense targets


@pytest.fixture
def dense(rng):
    y, z = rng.integers(0, 3, size=(2, 3, 4, 5)), rng.normal(size=(2, 3, 4, 5, 3))
    return y, z.astype("float32"), rng.random(y.shape) < 0.6


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean_with_sample_weight", "sum"])
def test_void_pixels_are_ignored_as_by_keras_own_cross_entropy(reduction, dense):
    y, z, known = dense
    void = np.where(known, y, 255).astype("uint8")
    theirs = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=255, reduction=reduction
    )
    loss = keras_ldam.CrossEntropy([9, 5, 2], reduction=reduction, ignore_class=255)
    expected = float(theirs(void.astype("int32"), z))
    assert float(loss(void, z)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("name", "ignored"), [("gradual", 255), ("focal", -1), ("hinge", 2)])
def test_void_pixels_count_neither_in_loss_nor_in_weights(name, ignored, dense):
    y, z, known = dense
    if ignored == 2:
        known = y != 2  # A class of the model, which is left out.
    void = np.where(known, y, ignored).astype("int32")
    broken = np.where(known[..., None], z, np.nan).astype("float32")
    weights = [0.5, 1.0, 1.5]
    loss = EACH[name]([90, 9, 5], class_weights=weights, ignore_class=ignored)
    expected = float(EACH[name]([90, 9, 5], class_weights=weights)(y[known], z[known]))
    assert float(loss(void, z)) == pytest.approx(expected, rel=1e-5)
    assert float(jitted(loss)(void[..., None], broken)) == pytest.approx(expected, rel=1e-5)
    assert np.all(gradient(lambda z: loss(void, z), z)[~known] == 0)
    everywhere = np.full_like(void, ignored)
    assert float(loss(everywhere, z)) == 0
    np.testing.assert_array_equal(
        values(loss.example_weights(void, z)), np.where(known, np.array(weights)[y], 0)
    )


@pytest.mark.parametrize("name", EACH)
def test_scores_of_a_row_without_a_label_and_of_masked_steps_may_be_anything(name, rng):
    counts, labels = [9, 5, 2], np.eye(3, dtype="float32")[[0, 2, 1]]
    z = rng.normal(size=(3, 3)).astype("float32")
    loss = EACH[name](counts, class_weights=[0.5, 1.0, 1.5])
    expected = float(loss(labels[:2], z[:2]))
    void, broken = labels * [[1], [1], [0]], np.where([[1], [1], [0]], z, np.nan)
    assert float(loss(void, broken)) == pytest.approx(expected, rel=1e-5)
    slope = gradient(lambda z: loss(void, z), broken.astype("float32"))
    assert np.all(slope[2] == 0) and np.all(np.isfinite(slope)) and np.any(slope[0] != 0)
    scores = ops.convert_to_tensor(broken.astype("float32"))
    keras_internals.set_mask(scores, ops.convert_to_tensor([True, True, False]))
    assert float(loss(np.array([0, 2, 1]), scores)) == pytest.approx(expected, rel=1e-5)


def test_a_mask_of_fewer_axes_leaves_what_is_ignored_out(rng):
    y = np.array([[[0, 1, 255], [2, 0, 255]]])
    z = rng.normal(size=(1, 2, 3, 3)).astype("float32")
    loss = keras_ldam.CrossEntropy([9, 5, 2], ignore_class=255)
    metric = keras_ldam.ClassErrors([9, 5, 2], ignore_class=255)
    for mask in (np.ones((1, 2, 3)), np.ones((1, 2))):
        scores = ops.convert_to_tensor(z)
        keras_internals.set_mask(scores, ops.convert_to_tensor(mask > 0))
        np.testing.assert_array_equal(values(loss.example_weights(y, scores)), y != 255)
        assert float(loss(y, scores)) == pytest.approx(float(loss(y, z)), rel=1e-6)
        metric.reset_state()
        metric.update_state(y, scores)
        wrong = z.argmax(axis=-1)[y != 255] != y[y != 255]
        assert float(metric.result()["error"]) == pytest.approx(wrong.mean())


def test_void_pixels_count_in_no_metric(dense):
    y, z, known = dense
    void = np.where(known, y, 255).astype("uint8")
    for make in (
        lambda **how: keras_ldam.ClassErrors([90, 9, 5], **how),
        lambda **how: keras_ldam.ClassMargins(3, **how),
        lambda **how: keras_ldam.MacroF1(3, **how),
        lambda **how: keras_ldam.OfProbabilities(
            keras.metrics.AUC(), scale=2.0, class_id=1, name="auc", **how
        ),
    ):
        metric, alone = make(ignore_class=255), make()
        metric.update_state(void, z)
        alone.update_state(y[known], z[known])
        found, expected = (
            [float(x) for x in keras.tree.flatten(m.result())] for m in (metric, alone)
        )
        assert found == pytest.approx(expected, rel=1e-5)
        again = keras.metrics.deserialize(keras.metrics.serialize(metric))
        assert again.get_config() == metric.get_config()


@pytest.mark.parametrize(("name", "axis"), [("gradual", 1), ("focal", -2)])
def test_classes_may_stand_on_another_axis(name, axis, dense):
    y, z, known = dense
    void = np.where(known, y, 255)
    moved = np.moveaxis(z, -1, axis)
    last = EACH[name]([90, 9, 5], ignore_class=255)
    loss = EACH[name]([90, 9, 5], ignore_class=255, axis=axis)
    expected = float(last(void, z))
    assert float(loss(void, moved)) == pytest.approx(expected, rel=1e-6)
    assert float(jitted(loss)(np.expand_dims(void, axis), moved)) == pytest.approx(
        expected, rel=1e-5
    )
    one_hot = np.eye(3, dtype="float32")[y] * known[..., None]
    assert float(loss(np.moveaxis(one_hot, -1, axis), moved)) == pytest.approx(expected, rel=1e-5)
    errors = [keras_ldam.ClassErrors([90, 9, 5], ignore_class=255, axis=a) for a in (axis, -1)]
    errors[0].update_state(void, moved)
    errors[1].update_state(void, z)
    assert float(errors[0].result()["error"]) == float(errors[1].result()["error"])


def test_a_batch_of_void_pixels_changes_nothing_in_fit(rng):
    x = rng.normal(size=(4, 6, 6, 2)).astype("float32")
    model = keras.Sequential([keras.Input((6, 6, 2)), keras_ldam.CosineDense(3)])
    metric = keras_ldam.ClassErrors([90, 9, 5], ignore_class=255)
    model.compile("sgd", keras_ldam.LDAM([90, 9, 5], ignore_class=255), metrics=[metric])
    before = model.get_weights()
    logs = model.fit(x, np.full((4, 6, 6), 255, "uint8"), verbose=0).history
    assert logs["loss"] == [0.0] and np.isnan(logs["error"][0])
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_one_hot_labels_name_no_class_to_ignore(dense):
    y, z, _ = dense
    one_hot = np.eye(3)[y]
    with pytest.raises(ValueError, match="a one-hot row without a label is zeros"):
        keras_ldam.LDAM([9, 5, 2], ignore_class=2)(one_hot, z)
    loss = keras_ldam.LDAM([9, 5, 2], ignore_class=255)
    assert float(loss(one_hot, z)) == pytest.approx(float(loss(y, z)), rel=1e-5)


def test_an_axis_that_scores_do_not_have_gets_a_sentence():
    for loss in (keras_ldam.CrossEntropy(axis=3), keras_ldam.CrossEntropy([5, 5], axis=3)):
        with pytest.raises(ValueError, match="axis"):
            loss([0], np.zeros((1, 2)))


@pytest.mark.parametrize("name", [name for name in EACH if name != "hinge"])
def test_infinite_single_scores_are_certain(name):
    z = np.array([[np.inf], [-np.inf]], np.float32)
    loss, right = EACH[name](COUNTS, reduction=None), np.array([1, 0])
    np.testing.assert_array_equal(values(loss(right, z)), 0)
    assert np.isfinite(gradient(lambda z: ops.sum(loss(right, z)), z)).all()
    wrong = values(EACH[name](COUNTS, reduction=None)(1 - right, z.astype("float16")))
    assert (wrong > 1e20).all() and not np.isnan(wrong).any()
    several = keras_ldam.AsymmetricFocal(reduction=None)
    np.testing.assert_array_equal(values(several(right[:, None], z)), 0)
    assert np.isnan(values(loss([0], np.array([[np.nan]], np.float32)))).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda y, z: losses.focal(y, z, form="sigmoid"),
        lambda y, z: losses.vector_scaling(y, z, COUNTS),
        keras_ldam.CrossEntropy(),
        keras_ldam.OfProbabilities(keras.metrics.AUC(), scale=1.0).update_state,
    ],
)
def test_a_score_without_an_axis_gets_a_sentence(call):
    with pytest.raises(ValueError, match="`y_pred`"):
        call([0], 1.0)


@pytest.mark.parametrize(
    "loss",
    [
        keras_ldam.LDAM(SIDES, class_weights=keras_ldam.class_weights(SIDES), ignore_class=-1),
        keras_ldam.LDAMHinge(SIDES, axis=1),
        keras_ldam.CrossEntropy(SIDES, ignore_class=9),
        keras_ldam.Focal(SIDES, form="sigmoid"),
    ],
    ids=lambda loss: loss.name,
)
def test_a_loss_comes_back_from_its_config(loss, several):
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert again.get_config() == loss.get_config()
    assert float(again(*several)) == float(loss(*several))
