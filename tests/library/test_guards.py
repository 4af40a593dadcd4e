"""Guards: each warning with its cause and without it."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_ldam
from keras_ldam import evaluation, guards
from keras_ldam.layers import outputs_of

COUNTS = [500, 50]


def cosines(*directions, **settings):
    """A model with the given class vectors on its inputs."""
    head = keras_ldam.CosineDense(len(directions), **settings)
    model = keras.Sequential([keras.Input((len(directions[0]),)), head])
    bias = [np.zeros(len(directions))] if head.use_bias else []
    head.set_weights([np.array(directions, "float32").T, *bias])
    model.compile(loss=keras_ldam.LDAM(COUNTS))
    return model


def told(model, x, y, counts=COUNTS):
    batches = [(np.asarray(x, "float32"), np.asarray(y))]
    return evaluation.diagnose(model, batches, counts)[1]["warnings"]


APART = np.repeat([[3.0, 0.1], [0.1, 3.0]], 10, axis=0)
LABELS = np.repeat([0, 1], 10)


@pytest.fixture
def good():
    return cosines([1, 0], [0, 1])


def test_a_model_that_works_gets_no_warning(good):
    assert told(good, APART, LABELS) == []


def test_features_that_are_not_finite_are_named(good):
    x = APART.copy()
    x[3, 0] = np.nan
    (warning,) = told(good, x, LABELS)
    assert warning.startswith("Features or scores of 1 of 20 examples are not finite")
    assert "TerminateOnNaN" in warning


@pytest.mark.parametrize("dead", [1, 2])
def test_features_that_are_zero_are_named_from_a_tenth_of_the_examples_on(dead, good):
    x = APART.copy()
    x[:dead] = 0
    warnings = told(good, x, LABELS)
    assert len(warnings) == (dead == 2)
    if warnings:
        assert "are zero for 2 of 20 examples" in warnings[0] and "`scale`" in warnings[0]


@pytest.mark.parametrize("factor", [1, 3])
def test_scores_of_a_subclass_that_are_no_cosines_are_named(factor):
    class Scores(keras.Model):
        def call(self, x):
            return factor * x

    model = Scores()
    model.compile(loss=keras_ldam.LDAM(COUNTS))
    warnings = told(model, APART / 3, LABELS)
    assert len(warnings) == (factor == 3)
    if warnings:
        assert "scores reach 3: make keras_ldam.CosineDense(2) the last layer" in warnings[0]
    model.compile(loss=keras_ldam.CrossEntropy(COUNTS))
    assert told(model, APART / 3, LABELS) == []


@pytest.mark.parametrize(
    ("settings", "loss", "line"),
    [
        ({}, {}, ": train longer before"),
        ({"use_bias": False}, {}, "use CosineDense(2) with its bias, or train longer"),
        ({}, {"gradual": False}, "use LDAM(counts) with margins that grow (gradual=True), or"),
    ],
)
def test_predictions_of_one_class_are_named_with_the_line_to_change(settings, loss, line):
    model = cosines([1, 1], [0, -1], **settings)
    model.compile(loss=keras_ldam.LDAM(COUNTS, **loss))
    (warning,) = told(model, APART, LABELS)
    assert warning.startswith("All 20 predictions are class 0") and line in warning


def test_where_nearly_all_examples_are_of_one_class_so_may_predictions_be(good):
    counts = [5000, 2]
    x, y = np.repeat([[3.0, 0.1], [0.1, 3.0]], counts, axis=0), np.repeat([0, 1], counts)
    assert told(good, x, y, counts) == []
    assert told(good, x[:5000], y[:5000], counts) == []
    y[:2] = 1  # Half of the rare class is still right.
    assert told(good, x, y, counts) == []
    warnings = told(good, x[:-2], y[:-2], counts)
    assert warnings[0].startswith("All 5,000 predictions are class 0")


def test_features_that_point_the_same_way_are_named():
    x = np.repeat([[1.0, 0.05], [1.0, -0.05]], 10, axis=0)
    model = cosines([0, 1], [0, -1], use_bias=False)
    (warning,) = told(model, x, LABELS)
    assert warning.startswith("The features of all examples point the same way: use CosineDense(2)")
    assert told(model, x * [0.1, 1], LABELS) == []


def test_cosines_that_do_not_depend_on_the_example_are_named(rng):
    x = np.c_[rng.normal(size=(20, 2)), np.repeat([0.01, -0.01], 10)]
    model = cosines([0, 0, 1], [0, 0, -1])
    (warning,) = told(model, x, LABELS)
    assert warning.startswith("Cosines hardly depend on the example (standard deviation 0.0")
    x[:, 2] *= 200
    assert told(model, x, LABELS) == []


@pytest.mark.parametrize("width", [8, 600])
def test_margins_that_wide_features_cannot_reach_are_named(width, rng):
    # Of zero mean, as after batch normalization; the first of them tells the classes apart.
    x = rng.normal(size=(200, width))
    x[:, 0] = np.repeat([1.5, -1.5], 100)
    first = np.eye(width)[0]
    model = cosines(first, -first)
    warnings = told(model, x, np.repeat([0, 1], 100))
    assert len(warnings) == (width == 600)
    if warnings:
        assert warnings[0].startswith("The margins are out of reach: nine of ten examples are less")
        assert "and the smallest margin is 0.28." in warnings[0]
        assert "keras.layers.Dense(64, 'relu') before the head" in warnings[0]
        model.compile(loss=keras_ldam.LDAM(COUNTS, max_margin=0.0))
        assert told(model, x, np.repeat([0, 1], 100)) == []


def test_probabilities_of_cosines_are_measured_by_no_limit_for_cosines():
    model = keras_ldam.with_probabilities(cosines([1, 0.1], [1, 0]), scale=1.0)
    assert told(model, [[1.0, 2.0], [1.0, -2.0]], [0, 1]) == []


# ----------------------------------------------------------------------------- pixels


def segmenter(head, **settings):
    """A model with a label for each of 4×5 pixels of two features."""
    model = keras.Sequential([keras.Input((4, 5, 2)), head])
    model.compile(loss=keras_ldam.LDAM(COUNTS, **settings))
    return model


def test_a_pixel_is_an_example_and_void_is_none(good):
    head = keras_ldam.CosineDense(2)
    model = segmenter(head, ignore_class=255)
    head.set_weights(good.layers[-1].get_weights())
    x, y = APART.reshape(1, 4, 5, 2), LABELS.reshape(1, 4, 5).copy()
    assert told(model, x, y) == []
    y[0, 0, 0], y[0, 3, 0] = 1, 255
    flat = [(APART[:15].astype("float32"), y.reshape(-1)[:15]), (APART[16:], LABELS[16:])]
    errors, diagnosis = evaluation.diagnose(model, [(x.astype("float32"), y)], COUNTS)
    assert (errors, diagnosis) == evaluation.diagnose(good, flat, COUNTS)
    assert diagnosis["n"] == 19 and errors["error"] == round(100 / 19, 4)


def test_pixels_that_are_all_predicted_one_class_are_named():
    head = keras_ldam.CosineDense(2)
    model = segmenter(head)
    head.set_weights([np.array([[1, 0], [1, -1]], "float32"), np.zeros(2)])
    (warning,) = told(model, APART.reshape(1, 4, 5, 2), LABELS.reshape(1, 4, 5))
    assert warning.startswith("All 20 predictions are class 0")


def test_a_convolution_that_ends_a_network_is_named():
    model = segmenter(layers.Conv2D(2, 1))
    (warning,) = guards.of_layers(model, [model.loss])
    assert "the model ends in Conv2D(2), whose logits" in warning
    assert "replace it by keras_ldam.CosineDense(2)" in warning
    assert guards.of_layers(model, [keras_ldam.CrossEntropy(COUNTS)]) == []


# ----------------------------------------------------------------------------- layers

DROPOUT, NORMALIZATION = (lambda: layers.Dropout(0.5)), layers.BatchNormalization


@pytest.mark.parametrize(
    ("before", "wrong"),
    [
        ([DROPOUT, NORMALIZATION], True),
        ([DROPOUT, layers.Flatten, NORMALIZATION, layers.ReLU], True),
        ([NORMALIZATION, DROPOUT], False),
        ([lambda: layers.Dropout(0.0), NORMALIZATION], False),
        # As in every network of several such blocks.
        ([DROPOUT, lambda: layers.Dense(4), NORMALIZATION], False),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_batch_normalization_of_dropout_before_the_head_is_named(before, wrong, nested):
    parts = [layer() for layer in before]
    if nested:
        parts = [keras.Sequential([keras.Input((4,)), *parts])]
    model = keras.Sequential([keras.Input((4,)), *parts, keras_ldam.CosineDense(2)])
    warnings = guards.of_layers(model, [keras_ldam.LDAM(COUNTS)])
    assert len(warnings) == wrong
    if wrong:
        assert "put BatchNormalization before Dropout" in warnings[0]


@pytest.mark.parametrize("head", [layers.Dense, keras_ldam.CosineDense])
def test_a_dense_head_in_a_subclass_is_named(head):
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = head(2)

        def call(self, x):
            return self.head(x)

    warnings = guards.of_layers(Net(), [keras_ldam.LDAM(COUNTS)])
    assert len(warnings) == (head is layers.Dense)
    assert not warnings or "replace it by keras_ldam.CosineDense(2)" in warnings[0]
    assert guards.of_layers(Net(), [keras_ldam.CrossEntropy(COUNTS)]) == []


@pytest.mark.parametrize(
    ("head", "loss", "wrong"),
    [
        (keras_ldam.CosineDense, keras_ldam.LogitAdjusted(COUNTS), True),
        (keras_ldam.CosineDense, keras_ldam.VectorScaling(COUNTS), True),
        (keras_ldam.CosineDense, keras_ldam.LogitAdjusted(COUNTS, scale=25), False),
        (keras_ldam.CosineDense, keras_ldam.LogitAdjusted(COUNTS, tau=0), False),
        (keras_ldam.CosineDense, keras_ldam.LDAM(COUNTS, tau=1.0), False),
        (layers.Dense, keras_ldam.LogitAdjusted(COUNTS), False),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_log_frequencies_added_to_cosines_without_a_scale_are_named(head, loss, wrong, nested):
    parts = [keras.Input((4,)), head(2)]
    if nested:
        parts = [keras.Input((4,)), keras.Sequential(parts)]
    warnings = guards.of_layers(keras.Sequential(parts), [loss])
    assert len(warnings) == wrong
    if wrong:
        assert warnings[0].startswith(type(loss).__name__) and "such as scale=25" in warnings[0]


def test_of_several_outputs_each_is_judged_with_its_own_loss():
    inputs = keras.Input((4,))
    outputs = {"logits": layers.Dense(2)(inputs), "cosines": keras_ldam.CosineDense(2)(inputs)}
    model = keras.Model(inputs, outputs)
    for adjusted, other, wrong in (("logits", "cosines", False), ("cosines", "logits", True)):
        loss = keras_ldam.LogitAdjusted(COUNTS)
        for beside in (keras_ldam.CrossEntropy(COUNTS), None):
            by_name = {adjusted: loss, other: beside}
            in_order = [by_name[name] for name in sorted(outputs)]  # As Keras does.
            for compiled in (by_name, in_order):
                warnings = guards.of_layers(model, [loss], compiled=compiled)
                assert [warning[:13] for warning in warnings] == ["LogitAdjusted"] * wrong


def test_losses_in_a_list_go_to_the_outputs_that_keras_gives_them_to():
    inputs = keras.Input((4,))
    outputs = {name: layers.Dense(2, name=name)(inputs) for name in ("z", "a", "m")}
    model = keras.Model(inputs, outputs)
    losses = [keras.losses.MeanSquaredError(name=name) for name in "123"]
    model.compile("sgd", losses, run_eagerly=True)
    x, y = np.ones((2, 4), "float32"), np.zeros((2, 2), "float32")
    targets = {"z": y, "a": y + 10, "m": y + 100}
    found = model.evaluate(x, targets, verbose=0, return_dict=True)
    paired = {name: loss for name, _, loss in outputs_of(model, model.loss)}
    predicted = model.predict_on_batch(x)
    assert paired["a"].name == "1"
    for name, loss in paired.items():
        assert found[f"{name}_loss"] == pytest.approx(float(loss(targets[name], predicted[name])))


def test_outputs_of_any_form_are_read():
    inputs = keras.Input((4,))
    parts = {"u": layers.Dense(2)(inputs), "v": layers.Dense(3)(inputs)}
    nested = keras.Model(inputs, {"main": parts})
    last = keras.Sequential([inputs, keras.Model(inputs, list(parts.values()))])
    one = keras.Model(inputs, {"scores": parts["u"]})
    loss = keras_ldam.LogitAdjusted(COUNTS)
    assert [found for _, _, found in outputs_of(nested, None)] == [None, None]
    assert [found for _, _, found in outputs_of(last, [loss, None])] == [loss, None]
    assert [(name, found) for name, _, found in outputs_of(one, loss)] == [("scores", loss)]
    assert outputs_of(keras.Sequential([layers.Dense(2)]), loss) == []


def test_a_layer_that_scales_cosines_is_seen():
    parts = [keras.Input((4,)), keras_ldam.CosineDense(2), layers.Rescaling(30.0)]
    assert guards.of_layers(keras.Sequential(parts), [keras_ldam.LogitAdjusted(COUNTS)]) == []


@pytest.mark.parametrize(
    ("loss", "wrong"),
    [
        (keras_ldam.LogitAdjusted, True),
        (keras_ldam.VectorScaling, True),
        (lambda counts: keras_ldam.LDAM(counts, tau=0.5), True),
        (lambda counts: keras_ldam.VectorScaling(counts, tau=0), False),
        (keras_ldam.LDAM, False),
        (keras_ldam.CrossEntropy, False),
    ],
)
def test_deferred_weights_after_an_adjustment_are_named(loss, wrong, recwarn):
    model = keras.Sequential([keras.Input((2,)), keras_ldam.CosineDense(2), layers.Rescaling(9.0)])
    model.compile(loss=loss(COUNTS))
    drw = keras_ldam.DRW(1)
    drw.set_params({"epochs": 2})
    drw.set_model(model)
    drw.on_train_begin()
    told = [str(each.message) for each in recwarn if each.category is UserWarning]
    assert len(told) == wrong
    if wrong:
        assert "rare classes count twice: leave out DRW, or set tau=0" in told[0]
