"""One pass of a model over examples, against NumPy, scikit-learn and the definitions."""

import threading

import keras
import numpy as np
import pytest
from keras import layers

import keras_ldam
from keras_ldam import evaluation
from keras_ldam.adjustment import measures


def oracle_margin(labels, scores):
    """γ = z_y - max_{j≠y} z_j, one example at a time."""
    return np.array(
        [row[y] - max(z for j, z in enumerate(row) if j != y)
         for y, row in zip(labels, scores, strict=True)]
    )  # fmt: skip


def values(tensor):
    return keras.ops.convert_to_numpy(tensor)


def halves(x, y):
    return [(x[:5], y[:5]), (x[5:], y[5:])]


def identity(num_classes):
    """A model whose examples are its scores."""
    return keras.Sequential([keras.Input((num_classes,)), layers.Activation("linear")])


@pytest.fixture
def data(rng):
    return rng.normal(size=(40, 6)).astype("float32"), rng.integers(0, 3, 40)


# ----------------------------------------------------------------------------- errors


def test_class_errors_are_those_of_scikit_learn(rng):
    oracle = pytest.importorskip("sklearn.metrics")
    y, z = rng.integers(0, 8, size=300), rng.normal(size=(300, 8)).astype("float32")
    errors = evaluation.class_errors(identity(8), halves(z, y), np.full(8, 50))
    recalls = 100 * oracle.recall_score(y, z.argmax(1), average=None)
    np.testing.assert_allclose(errors["per_class_error"], 100 - recalls, atol=1e-4)
    assert errors["top5_error"] == pytest.approx(
        100 - 100 * oracle.top_k_accuracy_score(y, z, k=5), abs=1e-3
    )
    assert errors["medium_error"] == pytest.approx(errors["mean_error"], abs=1e-3)
    assert evaluation.diagnose(identity(8), halves(z, y), np.full(8, 50))[0] == errors


def test_errors_of_the_best_guesses_are_those_of_scores(rng):
    y, z = rng.integers(0, 8, size=300), rng.normal(size=(300, 8)).astype("float32")
    counts = [500, 300, 90, 80, 30, 10, 5, 4]
    expected = evaluation.class_errors(identity(8), [(z, y)], counts)
    best = np.argsort(-z, axis=1)
    for k in (1, 5):
        found = evaluation.errors_of_guesses(y, best[:, 0] if k == 1 else best[:, :k], counts)
        np.testing.assert_allclose(
            found.pop("per_class_error"), expected["per_class_error"], atol=1e-4
        )
        assert found == {
            name: value
            for name, value in expected.items()
            if name != "per_class_error" and (k == 5 or name != "top5_error")
        }


class Own(keras.Model):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, inputs):
        return self.inner(inputs)


def with_sigmoid(form, kernel):
    """A model of one probability, and one of the score that it is made of."""
    inputs = keras.Input((4,))
    score = keras.Model(inputs, keras_ldam.CosineDense(1, use_bias=False, scale=8)(inputs))
    score.set_weights([kernel])
    if form == "with_probabilities":
        return keras_ldam.with_probabilities(score), score
    if form == "adjust":
        return keras_ldam.adjust(score).model, score
    outputs = layers.Activation("sigmoid")(layers.Rescaling(8.0)(score.outputs[0]))
    ended = keras.Model(inputs, outputs)
    if form == "subclassed":
        ended = Own(ended)
        ended.compile("sgd", "binary_crossentropy")
    return ended, score


@pytest.mark.parametrize("form", ["sigmoid", "subclassed", "with_probabilities", "adjust"])
def test_a_sigmoid_is_judged_as_the_score_that_it_is_made_of(form, rng):
    y = np.arange(60) % 2
    x = (rng.normal(size=(60, 4)) + 2 * y[:, None] - 1).astype("float32")
    model, score = with_sigmoid(form, np.ones((4, 1), "float32"))
    expected = evaluation.class_errors(score, [(x, y)], [30, 30])
    assert expected["mean_error"] < 20
    assert evaluation.class_errors(model, [(x, y)], [30, 30]) == expected
    errors, found = evaluation.diagnose(model, [(x, y)], [30, 30], scale=8.0)
    assert errors["per_class_error"] == expected["per_class_error"]
    assert found["warnings"] == [] and found["margins"]["unit"] == "probability"
    p = model.predict_on_batch(x)[:, 0]
    check_confidences(found["reliability"], np.stack([1 - p, p], axis=1), y)
    np.testing.assert_allclose(evaluation.scores(model, [(x, y)])[0][:, 1], p, rtol=1e-6)


def test_small_probabilities_keep_their_order(rng):
    y = np.arange(40) % 2
    x = (rng.normal(size=(40, 1)) + 2 * y[:, None]).astype("float32")
    inputs = keras.Input((1,))
    score = keras.Model(inputs, inputs - 30.0)
    sigmoid = keras.Model(inputs, layers.Activation("sigmoid")(score.outputs[0]))
    errors = [evaluation.class_errors(each, [(x, y)], [20, 20]) for each in (score, sigmoid)]
    assert errors[0] == errors[1] and 50 < errors[0]["auc"] < 100


@pytest.mark.parametrize("decimals", [8, 1])  # Without ties and with many.
def test_two_classes_have_the_area_and_the_error_at_the_best_threshold(rng, decimals):
    oracle = pytest.importorskip("sklearn.metrics")
    y = np.append([0, 1], rng.integers(0, 2, 58))
    z = np.round(rng.normal(size=(60, 2)) + np.eye(2)[y], decimals).astype("float32")
    errors = evaluation.class_errors(identity(2), halves(z, y), [40, 20])
    assert errors["auc"] == pytest.approx(
        100 * oracle.roc_auc_score(y, z[:, 1] - z[:, 0]), abs=1e-3
    )
    wrong, right, _ = oracle.roc_curve(y, z[:, 1] - z[:, 0])
    assert errors["oracle_error"] == pytest.approx(50 * np.min(wrong + 1 - right), abs=1e-3)
    assert errors["oracle_error"] <= errors["mean_error"]


def test_examples_of_one_class_alone_have_no_ranking():
    scores = np.array([[1, 0], [0, 1]], "float32")
    assert "auc" not in evaluation.class_errors(identity(2), [(scores, np.zeros(2, int))], [9, 3])


def test_five_classes_have_no_top5_error_and_a_group_without_examples_has_none():
    scores = np.array([[2, 1, 0, 0, 0], [1, 2, 0, 0, 0], [4, 0, 3, 2, 1]], "float32")
    errors = evaluation.class_errors(
        identity(5), [(scores, np.array([0, 0, 1]))], [500, 50, 50, 50, 5]
    )
    assert errors["per_class_error"] == [50, 100, None, None, None]
    assert (errors["many_error"], errors["medium_error"]) == (50, 100)
    assert not {"top5_error", "few_error"} & set(errors)


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_scores_that_are_not_numbers_or_all_equal_count_as_wrong(value):
    class Broken:
        def predict_on_batch(self, examples):
            return np.full((len(examples), 6), value, dtype=np.float32)

    batches = [(np.zeros((8, 1)), np.arange(8) % 4)]
    errors = evaluation.class_errors(Broken(), batches, np.full(6, 5))
    assert errors["error"] == errors["top5_error"] == 100


def test_of_equal_scores_the_first_class_is_the_guess_as_in_metrics_and_confusions():
    class Tied:
        def __init__(self, scores):
            self.scores = scores

        def predict_on_batch(self, examples):
            return np.tile(np.float32(self.scores), (len(examples), 1))

    for scores, expected in (([2, 2, 1], [0, 100, 100]), ([2, 2], [0, 100])):
        y = np.arange(len(scores))
        data = [(np.zeros((len(y), 1)), y)]
        errors = evaluation.class_errors(Tied(scores), data, np.full(len(y), 5))
        assert errors["per_class_error"] == expected


def test_batches_predicted_at_once_give_the_same_errors(rng):
    x, y = rng.normal(size=(50, 4)).astype("float32"), rng.integers(0, 4, size=50)
    batches = [(x[i : i + 10], y[i : i + 10]) for i in range(0, 50, 10)]
    alone, both = iter([True]), threading.Barrier(2, timeout=30)

    class Identity:
        def predict_on_batch(self, examples):
            if not next(alone, False):
                both.wait()  # For another batch's, or for ever.
            return examples

    found = evaluation.class_errors(Identity(), iter(batches), np.full(4, 5), at_once=2)
    assert found == evaluation.class_errors(identity(4), batches, np.full(4, 5))


def test_scores_come_with_their_labels_in_the_order_of_the_batches(data):
    x, y = data
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    found, labels = evaluation.scores(model, iter(halves(x, y[:, None])))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, model.predict(x, verbose=0), atol=1e-6)
    np.testing.assert_array_equal(labels, y)


class Foreign:
    """What a tensor of another backend looks like from outside."""

    def __init__(self, values):
        self.values, self.shape, self.ndim = values, values.shape, values.ndim

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)

    def __len__(self):
        return len(self.values)


def test_batches_may_hold_tensors_of_another_backend(rng, monkeypatch):
    monkeypatch.setattr(measures, "_DRAWS", 5)
    x, y = rng.normal(size=(60, 3)).astype("float32"), np.arange(60) % 3
    model = keras.Sequential([keras.Input((3,)), keras_ldam.CosineDense(3, scale=5)])
    plain, foreign = halves(x, y), [tuple(map(Foreign, batch)) for batch in halves(x, y)]
    for evaluate in (evaluation.class_errors, evaluation.diagnose):
        assert evaluate(model, foreign, [20] * 3) == evaluate(model, plain, [20] * 3)
    found, expected = (keras_ldam.adjust(model, batches) for batches in (foreign, plain))
    assert found.to_json() == expected.to_json()


@pytest.mark.parametrize(
    ("classes", "labels", "message"),
    [
        (
            3,
            np.eye(3)[[0] * 40],
            "must be whole numbers, .* not one-hot. Received: 15 labels for 5",
        ),
        (4, [0] * 40, r"must return 4 scores per example.*Received: output of shape \(5, 3\)"),
        (3, [3] * 40, r"Labels must be whole numbers in 0 … 2.*Received: 3"),
        (3, [0.5] * 40, r"Labels must be whole numbers in 0 … 2.*Received: 0.5"),
    ],
)
def test_a_model_or_labels_that_do_not_fit_get_a_sentence(data, classes, labels, message):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    batches = halves(data[0], np.array(labels))
    for function in (evaluation.class_errors, evaluation.diagnose):
        with pytest.raises(ValueError, match=message):
            function(model, batches, np.full(classes, 50))


def test_no_batch_gets_a_sentence():
    with pytest.raises(ValueError, match="`batches` must hold at least one example"):
        evaluation.scores(identity(3), [])


# ----------------------------------------------------------------------------- the diagnosis


def diagnosed(model, x, y, **options):
    return evaluation.diagnose(model, halves(x, y), [500, 50, 5], **options)[1]


def check_margins(found, margins, labels, *, unit):
    assert found["unit"] == unit
    for name, q in (("min", 0), ("q05", 0.05), ("q50", 0.5)):
        expected = [np.quantile(margins[labels == j], q) for j in range(3)]
        np.testing.assert_allclose(found[name], expected, atol=2e-5)


def check_confidences(found, probabilities, labels):
    """Each bin's mean says what went into it."""
    expected = keras_ldam.adjustment.reliability(
        probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    )
    assert found["count"] == expected["count"].tolist()
    np.testing.assert_allclose(
        [np.nan if c is None else c for c in found["confidence"]], expected["confidence"], atol=2e-5
    )
    assert found["ece"] == pytest.approx(expected["ece"], abs=2e-5)


def test_a_cosine_heads_margins_are_its_own_and_its_probabilities_are_scaled(data):
    x, y = data
    model = keras.Sequential([keras.Input((6,)), keras_ldam.CosineDense(3)])
    found = diagnosed(model, x, y, scale=30.0)
    cosines = model.predict_on_batch(x)
    check_margins(found["margins"], oracle_margin(y, cosines), y, unit="cosine")
    check_confidences(found["reliability"], values(keras.ops.softmax(30.0 * cosines)), y)


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_other_heads_are_measured_by_the_lengths_of_features_and_class_vectors(data, activation):
    x, y = data
    hidden = layers.Dense(5, activation="tanh")
    head = layers.Dense(3, activation=activation, bias_initializer="ones")
    model = keras.Sequential([keras.Input((6,)), hidden, head])
    found = diagnosed(model, x, y)
    features = values(hidden(x))
    logits = features @ values(head.kernel) + values(head.bias)
    lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(values(head.kernel), axis=0).max()
    check_margins(found["margins"], oracle_margin(y, logits) / lengths, y, unit="normalized score")
    check_confidences(found["reliability"], values(keras.ops.softmax(logits)), y)


def test_a_model_without_a_head_to_look_into_is_measured_in_its_own_scores(data):
    x, y = data

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = layers.Dense(3)

        def call(self, inputs):
            return 2.0 * self.head(inputs)

    model = Subclassed()
    found = diagnosed(model, x, y)
    check_margins(found["margins"], oracle_margin(y, model.predict_on_batch(x)), y, unit="score")


def test_probabilities_are_taken_as_they_are(data):
    x, y = data
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3), layers.Softmax()])
    found = diagnosed(model, x, y, scale=30.0)
    assert found["margins"]["unit"] == "probability"
    check_confidences(found["reliability"], model.predict_on_batch(x), y)


def test_a_diagnosis_counts_as_scikit_learn_does(data):
    oracle = pytest.importorskip("sklearn.metrics")
    x, y = data
    model = keras.Sequential([keras.Input((6,)), keras_ldam.CosineDense(3)])
    found = diagnosed(model, x, y)
    matrix = oracle.confusion_matrix(y, model.predict_on_batch(x).argmax(axis=1))
    assert found["confusion"] == matrix.tolist()
    assert found["group_confusion"] == matrix.tolist()  # One class is many, one medium, one few.
    mistakes = matrix[~np.eye(3, dtype=bool)]
    assert [n for _, _, n in found["most_confused"]] == sorted(mistakes[mistakes > 0], reverse=True)
    assert found["n"] == sum(found["reliability"]["count"]) == 40


def test_a_diagnosis_leaves_out_what_a_loss_without_counts_ignores(data):
    x, y = data
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True, ignore_class=255))
    assert diagnosed(model, x, np.where(np.arange(40) < 10, 255, y))["n"] == 30


def test_many_classes_have_no_matrix():
    n = evaluation.DENSE_CONFUSION + 1
    batches = [(np.eye(n, dtype="float32"), np.arange(n))]
    _, found = evaluation.diagnose(identity(n), batches, np.full(n, 50))
    assert found["confusion"] is None
    assert found["group_confusion"] == [[0, 0, 0], [0, n, 0], [0, 0, 0]]


def test_the_most_frequent_mistake_is_told_as_label_guess_and_number():
    labels, guesses = np.array([0, 0, 0, 1, 2]), np.array([1, 1, 2, 1, 2])
    batches = [(np.eye(3, dtype="float32")[guesses], labels)]
    _, found = evaluation.diagnose(identity(3), batches, [50, 50, 50])
    assert found["most_confused"] == [[0, 1, 2], [0, 2, 1]]


def test_a_class_without_an_example_has_no_margin():
    found = evaluation.class_margins(np.array([0.5, 0.25]), np.array([0, 0]), 2, unit="cosine")
    assert found == {
        "unit": "cosine", "min": [0.25, None], "q05": [0.2625, None], "q50": [0.375, None],
    }  # fmt: skip


def test_margins_that_are_not_finite_are_told_as_none():
    found = evaluation.class_margins(np.array([0.5, np.inf, 0.25]), np.array([0, 0, 1]), 2)
    assert found["q50"] == [None, 0.25]


def test_margins_of_classes_are_the_quantiles_of_numpy(rng):
    labels, margins = rng.integers(0, 30, 200), rng.normal(size=200)
    labels[labels == 3] = 4  # No example of class 3.
    margins[np.flatnonzero(labels == 5)[0]] = np.nan
    found = evaluation.class_margins(margins, labels, 30)
    for name, q in evaluation.QUANTILES.items():
        for j in range(30):
            own = margins[labels == j]
            if j in (3, 5):
                assert found[name][j] is None
            else:
                assert found[name][j] == pytest.approx(np.quantile(own, q), abs=6e-6)
