"""Probabilities of a model that gives scores, and metrics that need them. Every backend."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_ldam
from keras_ldam import evaluation
from keras_ldam.layers import Probabilities

COUNTS = [90, 30, 6]


def softmax(z):
    powers = np.exp(z - z.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def built(head, loss=None):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, head(keras.layers.Dense(8, "relu")(inputs)))
    if loss is not None:
        model.compile("sgd", loss)
    return model


def test_scores_that_were_trained_as_decisions_become_sigmoids(x):
    for loss in (
        keras.losses.BinaryCrossentropy(from_logits=True),
        keras_ldam.Focal(form="sigmoid"),
        keras_ldam.LDAM([[9, 1], [5, 5], [7, 3]], scale=1.0),
    ):
        model = built(keras.layers.Dense(3), loss)
        found = keras_ldam.with_probabilities(model).predict(x, verbose=0)
        z = model.predict(x, verbose=0)
        np.testing.assert_allclose(found, 1 / (1 + np.exp(-z)), rtol=1e-5)
    # Its counts say that an example has one class.
    model = built(keras.layers.Dense(3), keras_ldam.Focal(COUNTS, form="sigmoid"))
    found = keras_ldam.with_probabilities(model).predict(x, verbose=0)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


@pytest.fixture
def x(rng):
    return rng.normal(size=(12, 6)).astype("float32")


@pytest.mark.parametrize(
    ("head", "loss", "scale"),
    [
        (lambda: keras_ldam.CosineDense(3), keras_ldam.LDAM(COUNTS, scale=20), 20),
        (lambda: keras_ldam.CosineDense(3, scale=10), None, 10),
        (lambda: keras.layers.Dense(3), keras_ldam.CrossEntropy(COUNTS), 1),
        (lambda: keras.layers.Dense(3), None, 1),
    ],
)
def test_a_model_knows_the_scale_of_its_softmax(head, loss, scale, x):
    model = built(head(), loss)
    found = keras_ldam.with_probabilities(model).predict(x, verbose=0)
    expected = softmax(scale * model.predict(x, verbose=0).astype("float64"))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_there_is_an_offset_for_each_score(x):
    layer = Probabilities(activation="sigmoid", offsets=[3.0])
    with pytest.raises(ValueError, match=r"must be 6 numbers, one per score\. Received: 1"):
        layer(x)


def test_probabilities_survive_saving(x, tmp_path):
    model = keras_ldam.with_probabilities(built(keras_ldam.CosineDense(3, scale=10)))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-6)


def test_a_given_scale_takes_the_place_of_the_model_s_own(x):
    model = built(keras_ldam.CosineDense(3), keras_ldam.LDAM(COUNTS))
    found = keras_ldam.with_probabilities(model, scale=5.0).predict(x, verbose=0)
    np.testing.assert_allclose(found, softmax(5.0 * model.predict(x, verbose=0)), rtol=1e-5)


def test_a_subclassed_model_has_probabilities_too(x):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = keras_ldam.CosineDense(3)

        def call(self, inputs):
            return self.head(inputs)

    model = Own()
    scores = ops.convert_to_numpy(model(x))
    found = ops.convert_to_numpy(keras_ldam.with_probabilities(model, scale=30.0)(x))
    np.testing.assert_allclose(found, softmax(30.0 * scores), rtol=1e-5)


def test_a_single_score_of_a_subclassed_model_becomes_a_sigmoid(x, tmp_path):
    @keras.saving.register_keras_serializable()
    class OneScore(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.head = keras_ldam.CosineDense(1)

        def call(self, inputs):
            return self.head(inputs)

    model = OneScore()
    scores = ops.convert_to_numpy(model(x)).astype("float64")
    expected = 1 / (1 + np.exp(-5 * scores))
    adjusted = keras_ldam.adjust(model, scale=5.0).model
    for made in (keras_ldam.with_probabilities(model, scale=5.0), adjusted):
        np.testing.assert_allclose(made.predict(x, verbose=0), expected, rtol=1e-5)
        assert made.layers[-1].activation == "sigmoid"
    adjusted.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again.predict(x, verbose=0), expected, rtol=1e-5)
    once_more = Probabilities(2.0, applied="softmax")(expected)
    np.testing.assert_allclose(once_more, 1 / (1 + np.exp(-10 * scores)), rtol=1e-3)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: built(keras_ldam.CosineDense(3)), "softmax scale is unknown: pass `scale=`"),
        (
            lambda: built(keras_ldam.CosineDense(3, scale=10), keras_ldam.LDAM(COUNTS)),
            r"heads have scale=.10.0., losses have scale=.15.0.",
        ),
        (lambda: built(keras.layers.Dense(3, "softmax")), "ends in probabilities already"),
        (
            lambda: keras_ldam.with_probabilities(built(keras_ldam.CosineDense(3, scale=10))),
            "ends in probabilities already",
        ),
        (lambda: "model", "must be a Keras model"),
    ],
)
def test_what_has_no_probabilities_to_give_gets_a_sentence(model, message):
    with pytest.raises(ValueError, match=message):
        keras_ldam.with_probabilities(model())


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), "30"])
def test_a_scale_that_is_none_gets_a_sentence(scale):
    for make in (Probabilities, lambda s: keras_ldam.CosineDense(3, scale=s)):
        with pytest.raises(ValueError, match="`scale` must be a number"):
            make(scale)


def test_the_scale_of_a_head_does_not_change_what_it_gives(x):
    one, two = keras_ldam.CosineDense(3, scale=10), keras_ldam.CosineDense(3)
    one.build((None, 6))
    two.build((None, 6))
    two.set_weights(one.get_weights())
    np.testing.assert_array_equal(ops.convert_to_numpy(one(x)), ops.convert_to_numpy(two(x)))


@pytest.mark.parametrize(
    "metric",
    [keras.metrics.AUC, keras.metrics.Precision, keras.metrics.Recall],
)
def test_metrics_that_need_probabilities_work_inside_fit(metric, x, tmp_path):
    loss = keras_ldam.LDAM(COUNTS)
    model = built(keras_ldam.CosineDense(3), None)
    wrapped = keras_ldam.OfProbabilities(metric(name="rare"), scale=loss.scale, class_id=2)
    model.compile(keras.optimizers.SGD(0.0), loss, weighted_metrics=[wrapped])
    y = np.arange(12) % 3
    weights = np.linspace(0.5, 2, 12).astype("float32")
    logs = model.fit(x, y, sample_weight=weights, batch_size=5, verbose=0).history
    outside = metric()
    outside.update_state(y == 2, softmax(loss.scale * model.predict(x, verbose=0))[:, 2], weights)
    assert logs["rare"] == pytest.approx([float(outside.result())], rel=1e-5)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    told = again.evaluate(x, y, sample_weight=weights, verbose=0, return_dict=True)
    assert told["rare"] == pytest.approx(logs["rare"][0], rel=1e-5)


def test_one_hot_labels_and_rows_without_one_count_as_they_do_elsewhere(x):
    scores = x[:, :3]
    y = np.arange(12) % 3
    metric = keras_ldam.OfProbabilities(keras.metrics.Recall(), scale=1.0, class_id=1)
    metric.update_state(y, scores)
    expected = float(metric.result())
    metric.reset_state()
    void = np.concatenate([np.eye(3)[y], np.zeros((4, 3))]).astype("float32")
    metric.update_state(void, np.concatenate([scores, scores[:4]]))
    assert float(metric.result()) == expected


def test_all_classes_go_to_a_metric_of_several_labels(x):
    scores, y = x[:, :3], np.arange(12) % 3
    metric = keras_ldam.OfProbabilities(
        keras.metrics.AUC(multi_label=True, num_labels=3), scale=2.0
    )
    metric.update_state(y, scores)
    outside = keras.metrics.AUC(multi_label=True, num_labels=3)
    outside.update_state(np.eye(3)[y], softmax(2.0 * scores))
    assert float(metric.result()) == pytest.approx(float(outside.result()), rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "auc", "scale": 1.0}, "`metric` must be a Keras metric"),
        ({"metric": keras.metrics.AUC(), "scale": 0.0}, "`scale` must be"),
        ({"metric": keras.metrics.AUC(), "scale": 1.0, "class_id": -1}, "`class_id` must be"),
        ({"metric": keras.metrics.AUC(), "scale": 1.0, "multi_label": 1}, "`multi_label` must be"),
    ],
)
def test_bad_arguments_of_the_wrapper_get_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_ldam.OfProbabilities(**arguments)


def test_a_class_that_the_model_lacks_gets_a_sentence(x):
    metric = keras_ldam.OfProbabilities(keras.metrics.Recall(), scale=1.0, class_id=3)
    with pytest.raises(ValueError, match=r"a class in 0 … 2. Received: 3"):
        metric.update_state(np.arange(12) % 3, x[:, :3])


def test_an_axis_that_scores_do_not_have_gets_a_sentence(x):
    metric = keras_ldam.OfProbabilities(keras.metrics.Recall(), scale=1.0, class_id=1, axis=5)
    with pytest.raises(ValueError, match=r"`axis` must be an axis of `y_pred`. Received: axis=5"):
        metric.update_state(np.arange(12) % 3, x[:, :3])


@pytest.mark.filterwarnings("error::UserWarning")
def test_inputs_keep_their_names_and_their_form(x):
    keras.utils.set_random_seed(
        0
    )  # With all features 0 all scores are equal, and no class is right.
    parts = {name: keras.Input((6,), name=name) for name in ("second", "first")}
    both = keras.layers.Concatenate()([parts["first"], 10 * parts["second"]])
    named = keras.Model(parts, keras_ldam.CosineDense(3, scale=5)(both))
    given = {"first": x, "second": x[::-1].copy()}
    for model, examples in ((named, given), (built(keras_ldam.CosineDense(3, scale=5)), x)):
        found = ops.convert_to_numpy(keras_ldam.with_probabilities(model)(examples))
        expected = softmax(5 * model.predict(examples, verbose=0).astype("float64"))
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        # The scores of a look into the model are those of the model.
        labels = expected.argmax(axis=1)
        errors, _ = evaluation.diagnose(model, [(examples, labels)], COUNTS)
        assert errors["error"] == 0
