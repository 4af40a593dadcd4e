"""Trained models made into ones of probabilities, on every backend; exports on TensorFlow."""

import itertools
import json
import tracemalloc

import keras
import numpy as np
import pytest

import keras_ldam
from keras_ldam import adjustment
from keras_ldam.adjustment import fitting, held_out, measures
from keras_ldam.adjustment.criteria import Criterion, Decisions, best_offset, best_offsets
from keras_ldam.adjustment.outputs import read
from keras_ldam.layers import Probabilities


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch):
    monkeypatch.setattr(measures, "_DRAWS", 100)


def test_rows_without_a_label_or_a_weight_are_no_several_labels(rng):
    y, z = np.repeat([0, 1, 2], 60), rng.normal(size=(180, 3)).astype("float32")
    model = passing(3, loss=keras_ldam.CrossEntropy([60, 30, 10]))
    expected = keras_ldam.adjust(model, (z, np.eye(3)[y])).temperature
    more = np.concatenate([z, z[:4]])
    for labels, weights in (
        (np.concatenate([np.eye(3)[y], np.zeros((4, 3))]), np.ones(184)),
        (np.append(y, [-1] * 4), np.append(np.ones(180), np.zeros(4))),
    ):
        found = keras_ldam.adjust(model, (more, labels, weights))
        assert found.layer.activation == "softmax"
        assert found.temperature == pytest.approx(expected, rel=1e-4)


def test_labels_of_two_classes_may_be_a_column(rng):
    y, z = np.repeat([0, 1], [60, 40]), rng.normal(size=(100, 1)).astype("float32")
    model = passing(1, loss=keras_ldam.CrossEntropy([90, 10]))
    one, other = (keras_ldam.adjust(model, (z, labels)) for labels in (y, y[:, None]))
    assert one.temperature == other.temperature


def test_names_come_in_any_form_and_are_checked(rng):
    y, z = np.repeat([0, 1, 2], [60, 40, 12]), rng.normal(size=(112, 3)).astype("float32")
    names = np.array(["cat", "dog", "emu"])
    given = {"target_prior": {"dog": 0.3, "cat": 0.2, "emu": 0.5}, "class_names": names}
    found = keras_ldam.adjust(passing(3), (z, y), **given)
    np.testing.assert_allclose(found.prior, [0.2, 0.3, 0.5])
    assert "class 2 (emu): 12" in str(found)
    numbers = {"target_prior": {20: 0.3, 10: 0.2, 30: 0.5}, "class_names": [10, 20, 30]}
    again = keras_ldam.adjust(passing(3), (z, y), **numbers)
    np.testing.assert_array_equal(again.prior, found.prior)
    for wrong, message in ((names[:2], "3 classes. Received: 2"), (["a", "b", "a"], "must differ")):
        with pytest.raises(ValueError, match=f"`class_names` .*{message}"):
            keras_ldam.adjust(passing(3), (z, y), class_names=wrong)


def test_what_the_loss_ignores_is_left_out(rng):
    y, z = np.repeat([0, 1, 2], 60), rng.normal(size=(180, 3)).astype("float32")
    model = passing(3, loss=keras_ldam.CrossEntropy([60, 30, 10], ignore_class=255))
    expected = keras_ldam.adjust(model, (z, y)).temperature
    found = keras_ldam.adjust(model, (np.concatenate([z, z[:4]]), np.append(y, [255] * 4)))
    assert found.temperature == expected


def test_an_unknown_answer_says_nothing_of_its_label(rng):
    z = rng.normal(size=(200, 3)).astype("float32")
    answers = (z + rng.normal(size=z.shape) > 1).astype(int)
    answers[:80, 1] = -1
    tagger = passing(3, loss=keras_ldam.CrossEntropy([[90, 10]] * 3, ignore_class=-1))
    for criterion in ("nll", "balanced_accuracy"):
        found = keras_ldam.adjust(tagger, (z, answers), criterion=criterion)
        assert found.examples[1] == answers[80:, 1].sum()
    output = read(tagger)
    held = held_out.held_out(output, (z, answers))
    form = held_out.Form(output, 3, True)
    examples = held_out.examples_of(held, form, 1.0, None)
    how = {"factor": 1.0, "offsets": True}
    _, fitted, _ = fitting.fit_likelihood(examples, np.zeros((3, 2)), **how)
    known = fitting.Examples(
        examples.scores[80:, 1:2], examples.labels[80:, 1:2], np.ones((120, 1))
    )
    _, alone, _ = fitting.fit_likelihood(known, np.zeros((1, 2)), **how)
    np.testing.assert_allclose(fitted[1], alone[0], rtol=1e-4)
    assert examples.present()[1].sum() == 120
    np.testing.assert_allclose(examples.frequencies(), [*map(known_shares, answers.T)])


@pytest.mark.parametrize("criterion", ["nll", "balanced_accuracy", "macro_f1"])
def test_labels_with_few_known_answers_spoil_no_other(criterion, rng):
    z = rng.normal(size=(150, 4)).astype("float32")
    answers = (z + rng.normal(size=z.shape) > 0).astype(int)
    order = np.argsort(answers[:, 3])
    answers[order[2:-2], 3] = -1  # Two of each kind are left.
    tagger = passing(4, loss=keras_ldam.CrossEntropy([[90, 10]] * 4, ignore_class=-1))
    found = keras_ldam.adjust(tagger, (z, answers), criterion=criterion)
    for side in (found.before, found.after):
        assert np.isfinite([list(each) for each in side.values()]).all()
    assert np.isfinite(found.layer.offsets or [0.0]).all()


def known_shares(answers):
    return np.bincount(answers[answers >= 0]) / np.count_nonzero(answers >= 0)


def test_one_hot_labels_of_two_classes_fit_one_score(rng):
    y, z = np.repeat([0, 1], [60, 40]), rng.normal(size=(100, 1)).astype("float32")
    model = passing(1, loss=keras_ldam.CrossEntropy([90, 10]))
    one, other = (keras_ldam.adjust(model, (z, labels)) for labels in (y, np.eye(2)[y]))
    assert one.temperature == other.temperature
    without = np.concatenate([np.eye(2)[y], np.zeros((3, 2))])
    more = keras_ldam.adjust(model, (np.concatenate([z, z[:3]]), without))
    assert more.temperature == one.temperature
    with pytest.raises(
        ValueError, match=r"for a single score must be one-hot\. Received: .* sum 2"
    ):
        keras_ldam.adjust(model, (z, np.ones((100, 2))))
    with pytest.raises(ValueError, match=r"smooth and mix them for training only\. Received: 0\.9"):
        keras_ldam.adjust(passing(3), (rng.normal(size=(100, 3)), np.full((100, 3), 0.9)))


def test_classes_on_another_axis_get_a_sentence():
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, keras.layers.Permute((3, 1, 2))(inputs))
    model.compile("sgd", keras_ldam.CrossEntropy([50, 30, 20], axis=1))
    for wants in (keras_ldam.with_probabilities, lambda model: keras_ldam.adjust(model, tau=1.0)):
        with pytest.raises(ValueError, match=r"classes on the last axis.*a loss with axis=1"):
            wants(model)


def test_what_an_output_comes_out_of_is_that_of_this_output():
    inputs = keras.Input((3,))
    both = {"logits": keras.layers.Dense(3)(inputs)}
    both["probabilities"] = keras.layers.Softmax()(both["logits"])
    body, x = keras.Model(inputs, both), keras.Input((3,))
    assert keras_ldam.adjust(keras.Model(x, body(x)["logits"]), tau=0.0).layer.applied is None
    cast = keras.layers.Activation("linear", dtype="float32")
    model = keras.Model(x, cast(body(x)["probabilities"]))
    assert keras_ldam.adjust(model, tau=0.0).layer.applied == "softmax"
    with pytest.raises(ValueError, match="ends in probabilities already"):
        keras_ldam.with_probabilities(model)


@pytest.fixture
def metrics():
    return pytest.importorskip("sklearn.metrics")


def softmax(z):
    powers = np.exp(z - z.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def passing(num_scores, activation=None, *, loss=None, head=None):
    """A model that gives its input, after an activation."""
    inputs = keras.Input((num_scores,))
    dense = head or keras.layers.Dense(
        num_scores, activation, kernel_initializer="identity", name="head"
    )
    model = keras.Model(inputs, dense(inputs))
    if loss is not None:
        model.compile("sgd", loss)
    return model


def of_frequencies(rng, n, prior, *, num_classes=3, spread=1.5):
    """Labels of some frequencies, and scores that are log p(x|j) exactly, up to a constant."""
    y = rng.choice(num_classes, n, p=prior)
    y[: 2 * num_classes] = np.repeat(np.arange(num_classes), 2)
    x = rng.normal(size=(n, num_classes)) + spread * np.eye(num_classes)[y]
    return (spread * x).astype("float32"), y


# ----------------------------------------------------------------------------- what is given


def test_everything_given_is_folded_into_one_layer_by_the_formula(rng, tmp_path):
    x = rng.normal(size=(5, 3)).astype("float32")
    counts, target, source, b = [90, 9, 1], [1, 2, 1], [6, 3, 1], [0.1, 0.0, -0.2]
    model = passing(3, loss=keras_ldam.CrossEntropy(counts))
    found = keras_ldam.adjust(
        model, scale=4, temperature=2, target_prior=target, source_prior=source, offsets=b
    )
    shift = np.log(np.array(target) / 4) - np.log(np.array(source) / 10)
    expected = softmax(4 * x / 2 + shift + b)
    np.testing.assert_allclose(found.model.predict(x, verbose=0), expected, rtol=1e-5)
    assert found.prior is None  # Offsets of one's own may stand for any other.
    told = keras_ldam.adjust(model, target_prior=target, source_prior=source)
    np.testing.assert_allclose(told.prior, [0.25, 0.5, 0.25])
    by_tau = keras_ldam.adjust(model, tau=0.5)
    np.testing.assert_allclose(by_tau.prior, np.sqrt(counts) / np.sqrt(counts).sum())
    expected = softmax(x - 0.5 * np.log(counts))
    np.testing.assert_allclose(by_tau.model.predict(x, verbose=0), expected, rtol=1e-5)
    by_tau.model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again.predict(x, verbose=0), expected, rtol=1e-5)
    assert again.layers[-1].get_config() == by_tau.layer.get_config()


@pytest.mark.parametrize(("activation", "make"), [("softmax", softmax), ("sigmoid", sigmoid)])
def test_an_activation_that_was_applied_is_undone(activation, make, rng):
    z = rng.normal(size=(6, 3)).astype("float32")
    x = make(z.astype("float64"))
    layer = Probabilities(2, offsets=[0.5, 0, -0.5], activation=activation, applied=activation)
    np.testing.assert_allclose(layer(x), make(2 * z + [0.5, 0, -0.5]), rtol=1e-4)
    ends = Probabilities(activation=activation, applied=activation)(np.array([[0.0, 1.0]]))
    assert np.isfinite(keras.ops.convert_to_numpy(ends)).all()


def test_probabilities_of_a_foreign_model_stay_as_they_are_where_nothing_is_given(rng):
    x = rng.normal(size=(5, 4)).astype("float32")
    for activation in ("softmax", "sigmoid"):
        model = passing(4, activation)
        found = keras_ldam.adjust(model).model.predict(x, verbose=0)
        np.testing.assert_allclose(found, model.predict(x, verbose=0), rtol=1e-4)


def test_what_the_loss_has_learned_is_the_source_of_a_shift():
    counts = [75, 25]
    loss = keras_ldam.CrossEntropy(counts, class_weights=[0.5, 1.5])
    found = keras_ldam.adjust(passing(2, loss=loss), target_prior=[0.9, 0.1])
    np.testing.assert_allclose(found.source_prior, [0.5, 0.5])
    np.testing.assert_allclose(found.offsets, np.log([0.9, 0.1]) - np.log(0.5), rtol=1e-6)
    loss = keras_ldam.LogitAdjusted(counts, tau=1.0)
    found = keras_ldam.adjust(passing(2, loss=loss), target_prior=[0.9, 0.1])
    np.testing.assert_allclose(found.source_prior, [0.5, 0.5])


def test_one_of_several_outputs_is_adjusted_with_its_own_scale(rng):
    inputs = keras.Input((4,))
    outputs = {
        "kind": keras.layers.Dense(3, name="kind")(inputs),
        "cosine": keras_ldam.CosineDense(2, name="cosine")(inputs),
    }
    model = keras.Model(inputs, outputs)
    losses = {"kind": keras_ldam.CrossEntropy([5, 3, 2]), "cosine": keras_ldam.LDAM([9, 1])}
    model.compile("sgd", losses)
    x, y = rng.normal(size=(40, 4)).astype("float32"), np.arange(40) % 2
    found = keras_ldam.adjust(model, (x, {"cosine": y}), output="cosine")
    assert found.scale == losses["cosine"].scale
    assert found.model.predict(x, verbose=0).shape == (40, 2)
    assert keras_ldam.adjust(model, output=0).scale == 1
    kinds = np.arange(40) % 3
    for labels in ({"kind": kinds, "cosine": y}, (kinds, y)):
        by_place = keras_ldam.adjust(model, (x, labels), output=1)
        assert by_place.offsets.tolist() == found.offsets.tolist()
    with pytest.raises(ValueError, match=r"labels of the output 'kind'\. Received: labels by name"):
        keras_ldam.adjust(model, (x, {"cosine": y, "kinds": kinds}), output="kind")
    with pytest.raises(ValueError, match=r"has 2 outputs: choose one .* kind, cosine"):
        keras_ldam.adjust(model)
    with pytest.raises(ValueError, match="Unknown output 'kinds'; available: kind, cosine"):
        keras_ldam.adjust(model, output="kinds")


# ----------------------------------------------------------------------------- what is fitted


@pytest.mark.parametrize("name", ["balanced_accuracy", "macro_f1", "cost", "recall_at"])
def test_an_offset_is_the_best_of_all_that_there_are(name, rng, metrics):
    n, num_classes, c = 60, 3, 1
    logits = rng.normal(size=(n, num_classes)) + np.eye(3)[rng.integers(0, 3, n)]
    labels, weights = rng.integers(0, 3, n), rng.integers(1, 4, n).astype(float)
    criterion = Criterion(name, rng.random((3, 3)) if name == "cost" else None, 0.5, c)

    def value(b):
        guesses = (logits + b * np.eye(3)[c]).argmax(axis=1)
        found = Decisions(labels[:, None], guesses[:, None], weights[:, None], 3)
        if name == "balanced_accuracy":
            return metrics.balanced_accuracy_score(labels, guesses, sample_weight=weights)
        if name == "macro_f1":
            return metrics.f1_score(labels, guesses, average="macro", sample_weight=weights)
        return criterion.of(found)[0]

    found = best_offset(logits, labels, weights, c, criterion)
    tried = [value(b) for b in np.arange(-6, 6, 0.05)]
    assert value(found) >= max(tried) - 1e-12
    assert value(found) > value(0) or found == 0


def test_criteria_are_those_of_scikit_learn(rng, metrics):
    labels, guesses = rng.integers(0, 4, 80), rng.integers(0, 4, 80)
    weights = rng.random(80)
    found = Decisions(labels[:, None], guesses[:, None], weights[:, None], 4)
    confusion = metrics.confusion_matrix(labels, guesses, sample_weight=weights)
    np.testing.assert_allclose(found.right[0], np.diag(confusion))
    np.testing.assert_allclose(found.held[0], confusion.sum(axis=1))
    np.testing.assert_allclose(found.guessed[0], confusion.sum(axis=0))
    costs = rng.random((4, 4))
    expected = -(costs * confusion).sum() / confusion.sum()
    assert Criterion("cost", costs).of(found)[0] == pytest.approx(expected)
    for name, oracle in (
        ("balanced_accuracy", metrics.balanced_accuracy_score),
        ("macro_f1", lambda *a, **k: metrics.f1_score(*a, average="macro", **k)),
        ("accuracy", metrics.accuracy_score),
    ):
        value = oracle(labels, guesses, sample_weight=weights)
        assert Criterion(name).of(found)[0] == pytest.approx(value)


def test_thousands_of_classes_take_no_array_of_their_squares(rng):
    num_classes, n = 4000, 8000
    labels, guesses = rng.integers(0, num_classes, (2, n))
    criterion = Criterion("balanced_accuracy")
    tracemalloc.start()
    try:
        found = criterion.of(
            Decisions(labels[:, None], guesses[:, None], np.ones((n, 1)), num_classes)
        )
        along = criterion.along(labels, guesses, np.ones(n), 0, num_classes)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert along[0] == pytest.approx(found[0])
    assert peak < num_classes**2 / 8


def test_more_classes_than_get_offsets_are_remarked_upon_and_too_many_scores_refused(
    rng, monkeypatch
):
    monkeypatch.setattr(fitting, "MOST_CLASSES", 2)
    monkeypatch.setattr(measures, "MOST_CLASSES", 2)
    scores, labels = of_frequencies(rng, 300, [0.4, 0.3, 0.3])
    arguments = {"criterion": "balanced_accuracy", "scale": 1.0, "counts": [8, 1, 1]}
    found = keras_ldam.adjust(passing(3), (scores, labels), **arguments)
    assert any(r.startswith("Offsets of 3 classes were not fitted") for r in found.remarks)
    monkeypatch.setattr(held_out, "MOST_SCORES", 899)
    with pytest.raises(ValueError, match="at most 899 scores, examples times 3 classes"):
        keras_ldam.adjust(passing(3), (scores, labels), **arguments)


def test_offsets_climb_at_least_as_high_as_any_of_a_grid(rng, metrics):
    scores, labels = of_frequencies(rng, 300, [0.8, 0.15, 0.05])
    logits, weights = scores + np.log([0.8, 0.15, 0.05]), np.ones(300)
    criterion = Criterion("macro_f1")

    def value(offsets):
        guesses = (logits + offsets).argmax(axis=1)
        return metrics.f1_score(labels, guesses, average="macro")

    found = value(best_offsets(logits, labels, weights, criterion))
    grid = [value([0, a, b]) for a, b in itertools.product(np.arange(-2, 4, 0.5), repeat=2)]
    assert found >= max(grid) - 0.01


def test_the_likelihood_is_that_of_a_logistic_regression(rng):
    linear_model = pytest.importorskip("sklearn.linear_model")
    z = rng.normal(size=400)
    labels = (rng.random(400) < sigmoid(0.6 * z - 1)).astype(int)
    examples = fitting.Examples(
        np.stack([np.zeros(400), z], axis=1)[:, None], labels[:, None], np.ones((400, 1))
    )
    oracle = linear_model.LogisticRegression(C=np.inf, tol=1e-8).fit(z[:, None], labels)
    for ways in ({"direction": np.array([-0.5, 0.5])}, {"offsets": True}):
        a, b, determined = fitting.fit_likelihood(examples, np.zeros((1, 2)), **ways)
        assert determined
        assert a == pytest.approx(oracle.coef_[0, 0], rel=1e-3)
        assert b[0, 1] - b[0, 0] == pytest.approx(oracle.intercept_[0], rel=1e-3)
    a, _, _ = fitting.fit_likelihood(examples, np.zeros((1, 2)))
    by_scipy = adjustment.fit_temperature(examples.scores[:, 0], labels)
    assert 1 / a == pytest.approx(by_scipy, rel=1e-4)


def long_tailed(rng, num_classes, spread, n=200):
    """Held-out examples with scores of a spread, in which training frequencies are doubled."""
    counts = np.round(1000 * 100.0 ** -np.linspace(0, 1, num_classes))
    labels = np.arange(n) % num_classes
    scores = rng.normal(size=(n, num_classes)) + np.eye(num_classes)[labels] + 2 * np.log(counts)
    weights = rng.uniform(0.5, 2.0, n)
    direction = np.log(counts).mean() - np.log(counts)
    return fitting.Examples(spread * scores[:, None], labels[:, None], weights[:, None]), direction


@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize("spread", [0.1, 0.5, 2, 10, 50])
@pytest.mark.parametrize("factor", [None, 0.7])
@pytest.mark.parametrize("way", ["direction", "offsets"])
def test_the_likelihood_has_no_better_place_than_the_one_found(
    num_classes, spread, factor, way, rng
):
    optimize = pytest.importorskip("scipy.optimize")
    examples, direction = long_tailed(rng, num_classes, spread)
    base = rng.normal(size=(1, num_classes))
    ways = {"direction": direction} if way == "direction" else {"offsets": True}

    def nll(a, b):
        found = fitting.losses(a * examples.scores + base + b, examples.labels)
        return np.average(found, weights=examples.weights)

    a, b, determined = fitting.fit_likelihood(examples, base, factor=factor, **ways)
    given = factor or (None if determined else 1.0)  # It is 1 beyond the range of temperatures.
    along = direction[None] if way == "direction" else np.eye(num_classes)[1:]
    best = optimize.minimize(
        lambda numbers: nll(given or numbers[0], numbers[-len(along) :] @ along),
        np.zeros((given is None) + len(along)),
        method="BFGS",
    )
    assert nll(a, b) < best.fun + 1e-6


def test_a_model_too_sure_of_what_it_was_trained_on_is_given_back_its_likelihood(rng):
    labels, counts = np.arange(1000) % 2, np.array([5000, 50])
    means = np.eye(2) / np.sqrt(2)
    scores = (rng.normal(size=(1000, 2)) + means[labels]) @ means.T
    x = (1.5 * (scores + np.log(counts / counts.sum()))).astype("float32")
    found = keras_ldam.adjust(passing(2), (x, labels), counts=counts)
    true = adjustment.negative_log_likelihood(scores, labels)
    chances = found.model.predict(x, verbose=0)
    assert adjustment.negative_log_likelihood(np.log(chances), labels) < true + 0.005
    assert found.temperature == pytest.approx(1.5, rel=0.2)


def test_a_likelihood_whose_maximum_is_not_reached_says_so(rng, monkeypatch):
    examples, direction = long_tailed(rng, 3, 2.0)
    monkeypatch.setattr(fitting, "_STEPS", 1)
    with pytest.warns(UserWarning, match="did not reach its maximum in 1 steps"):
        fitting.fit_likelihood(examples, np.zeros((1, 3)), direction=direction)


def test_a_known_prior_and_temperature_are_found_again(rng):
    prior = np.array([0.8, 0.15, 0.05])
    scores, y = of_frequencies(rng, 3000, prior)
    x = 2 * (scores + np.log(prior))  # A model trained on the prior, twice too sure.
    counts = (1000 * prior).astype(int)
    model = passing(3)
    honest = keras_ldam.adjust(model, (x, y), counts=counts)
    assert honest.temperature == pytest.approx(2, rel=0.1)
    assert abs(honest.tau or 0) < 0.1  # It has the frequencies of the data already.
    np.testing.assert_allclose(honest.prior, prior, atol=0.03)
    balanced = keras_ldam.adjust(model, (x, y), counts=counts, criterion="balanced_accuracy")
    assert balanced.tau == pytest.approx(1, abs=0.3)
    assert balanced.difference["balanced_accuracy"].low > 0.05
    np.testing.assert_allclose(balanced.prior, [1 / 3] * 3, atol=0.15)
    fresh, labels = of_frequencies(rng, 6000, [1 / 3] * 3)
    guesses = balanced.model.predict(2 * (fresh + np.log(prior)), verbose=0).argmax(axis=1)
    measured = balanced.after["balanced_accuracy"]
    assert measured.low - 0.01 < (guesses == labels).mean() < measured.high + 0.01
    text = str(balanced)
    for part in ("adjusted for balanced_accuracy", "temperature", "tau", "before", "difference"):
        assert part in text
    with pytest.raises(ValueError, match="`scale / temperature` must be"):
        keras_ldam.adjust(passing(3), temperature=1e-7)
    asked = {"tau": np.float32(1), "temperature": np.float32(1.5), "counts": [5, 3, 2]}
    told = json.dumps(keras_ldam.adjust(passing(3), **asked).to_json())
    assert json.loads(told)["temperature"] == 1.5
    assert set(balanced.to_json()["before"]) == {
        "balanced_accuracy", "macro_f1", "accuracy", "nll"
    }  # fmt: skip


def test_held_out_examples_stand_for_the_target_prior(rng):
    scores, y = of_frequencies(rng, 2000, [1 / 3] * 3)
    target = np.array([0.7, 0.2, 0.1])
    found = keras_ldam.adjust(passing(3), (scores, y), target_prior=target)
    np.testing.assert_allclose(
        found.offsets - found.offsets.mean(), np.log(target) - np.log(target).mean(), atol=0.3
    )
    assert "left to the fit" in str(found)
    known = keras_ldam.adjust(passing(3), (scores, y), target_prior=target, source_prior=[1, 1, 1])
    np.testing.assert_allclose(known.offsets, np.log(target * 3), atol=0.3)
    np.testing.assert_allclose(known.prior, target, atol=1e-6)


@pytest.mark.parametrize(
    ("tau", "criterion"), [(0.0, "nll"), (0.5, "nll"), (1.0, "nll"), (1.0, "balanced_accuracy")]
)
@pytest.mark.parametrize("held", [[0.8, 0.15, 0.05], [1 / 3] * 3])
def test_a_given_tau_says_for_which_frequencies_whatever_those_held_out_are(
    held, tau, criterion, rng
):
    learned = np.array([0.8, 0.15, 0.05])
    scores, y = of_frequencies(rng, 3000, held)
    x = 2 * (scores + np.log(learned))  # A model trained on the prior, twice too sure.
    found = keras_ldam.adjust(
        passing(3), (x, y), counts=(1000 * learned).astype(int), tau=tau, criterion=criterion
    )
    assert found.temperature == pytest.approx(2, rel=0.1)
    left = learned ** (1 - tau)
    np.testing.assert_allclose(found.prior, left / left.sum(), atol=0.05)
    shift = -tau * np.log(learned)
    np.testing.assert_allclose(
        found.offsets - found.offsets.mean(), shift - shift.mean(), atol=0.25
    )


def test_a_given_tau_starts_from_what_the_loss_has_learned(rng):
    scores, y = of_frequencies(rng, 300, [0.6, 0.3, 0.1])
    loss = keras_ldam.CrossEntropy([60, 30, 10], class_weights=[1, 2, 6])
    found = keras_ldam.adjust(passing(3, loss=loss), (scores, y), tau=0.0)
    np.testing.assert_allclose(found.prior, [1 / 3] * 3)


def test_a_prior_that_nothing_says_is_none(rng):
    scores, y = of_frequencies(rng, 60, [0.8, 0.1, 0.1])
    for criterion in ("nll", "balanced_accuracy"):
        ways = {"criterion": criterion, "counts": [9, 9, 9]}
        assert keras_ldam.adjust(passing(3), (scores, y), **ways).prior is None  # Too few to fit.
        ways["counts"] = [30, 20, 10]
        assert keras_ldam.adjust(passing(3), (scores, y), **ways).prior is not None
        assert keras_ldam.adjust(passing(3), (scores, y), offsets=[0, 0, 5], **ways).prior is None


def test_one_sigmoid_gets_the_best_threshold_and_a_floor_on_precision_holds(rng, metrics):
    y = np.arange(600) % 10 == 0
    x = (rng.normal(size=600) + 2 * y)[:, None].astype("float32") - 3
    model = passing(1, "sigmoid")
    found = keras_ldam.adjust(model, (x, y), criterion="balanced_accuracy")
    before, after = (m.predict(x, verbose=0)[:, 0] for m in (model, found.model))
    np.testing.assert_array_equal(before > found.thresholds[0], after > 0.5)
    _, recalls, _ = metrics.roc_curve(y, before)
    false, _, _ = metrics.roc_curve(y, before)
    best = ((recalls + 1 - false) / 2).max()
    assert metrics.balanced_accuracy_score(y, after > 0.5) == pytest.approx(best)
    floor = keras_ldam.adjust(model, (x, y), criterion="recall_at", precision=0.7)
    chosen = floor.model.predict(x, verbose=0)[:, 0] > 0.5
    precisions, recalls, _ = metrics.precision_recall_curve(y, before)
    assert metrics.precision_score(y, chosen) >= 0.7
    assert metrics.recall_score(y, chosen) == recalls[precisions >= 0.7].max()
    with pytest.raises(ValueError, match=r"No threshold reaches .* the best is"):
        keras_ldam.adjust(model, (np.zeros_like(x), y), criterion="recall_at", precision=0.5)


def test_costs_move_the_threshold_to_where_they_say(rng):
    y = (np.arange(4000) % 2).astype(int)
    x = (rng.normal(size=4000) + 2 * y - 1)[:, None].astype("float32")
    costs = [[0, 1], [9, 0]]  # A miss costs nine alarms: best above a probability of 0.1.
    found = keras_ldam.adjust(passing(1, "sigmoid"), (2 * x, y), criterion="cost", costs=costs)
    assert found.thresholds[0] == pytest.approx(0.1, abs=0.06)
    assert found.difference["cost"].high < 0


def test_several_labels_have_a_threshold_each(rng, metrics):
    y = (rng.random((500, 3)) < [0.5, 0.2, 0.1]).astype("float32")
    x = (rng.normal(size=(500, 3)) + [8, 2, 2] * y - [4, 3, 1]).astype("float32")
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    found = keras_ldam.adjust(passing(3, loss=loss), (x, y), criterion="macro_f1")
    assert found.layer.activation == "sigmoid"
    assert found.thresholds[1] < 0.3
    assert found.offsets[0] == 0  # There was nothing to gain: none was kept.
    guesses = found.model.predict(x, verbose=0) > 0.5
    plain = metrics.f1_score(y, x > 0, average="macro")
    assert metrics.f1_score(y, guesses, average="macro") > plain + 0.02
    assert found.before["macro_f1"].value == pytest.approx(plain)
    assert found.examples.tolist() == y.sum(axis=0).tolist()


def test_nothing_to_gain_is_said_and_nothing_is_changed(rng):
    scores, y = of_frequencies(rng, 400, [1 / 3] * 3)
    found = keras_ldam.adjust(
        passing(3), (scores, y), criterion="balanced_accuracy", counts=[50, 20, 10]
    )
    assert found.tau is None and not found.offsets.any()
    assert "none was kept" in str(found)
    assert "cannot be told from none" in str(found)


def test_too_few_examples_are_named_and_get_no_offsets_of_their_own(rng):
    scores, y = of_frequencies(rng, 120, [0.7, 0.22, 0.08])
    y[-200:][y[-200:] == 2] = 0
    y[:7] = 2
    found = keras_ldam.adjust(
        passing(3), (scores, y), criterion="macro_f1", class_names=["a", "b", "rare"]
    )
    assert "class 2 (rare): 7" in str(found)
    direction = np.log(found.examples)
    if found.offsets.any():  # A multiple of the logarithms: τ alone.
        assert np.corrcoef(found.offsets, direction)[0, 1] == pytest.approx(-1)


def test_batches_weights_and_one_hot_labels_are_read_alike(rng):
    scores, y = of_frequencies(rng, 90, [0.5, 0.3, 0.2])
    weights = rng.integers(1, 3, 90).astype("float32")
    model = passing(3)
    whole = keras_ldam.adjust(model, (scores, y, weights))
    batches = [
        (scores[i : i + 30], np.eye(3)[y[i : i + 30]], weights[i : i + 30]) for i in (0, 30, 60)
    ]
    parts = keras_ldam.adjust(model, batches)
    assert parts.temperature == pytest.approx(whole.temperature, rel=1e-4)
    assert parts.before["nll"].value == pytest.approx(whole.before["nll"].value, rel=1e-4)
    rows = np.repeat(np.arange(90), weights.astype(int))
    repeated = keras_ldam.adjust(model, (scores[rows], y[rows]))
    assert whole.before["nll"].value == pytest.approx(repeated.before["nll"].value, rel=1e-4)


def test_weights_of_none_are_none_and_come_in_every_batch_or_in_none(rng):
    scores, y = of_frequencies(rng, 90, [0.5, 0.3, 0.2])
    expected = keras_ldam.adjust(passing(3), (scores, y)).to_json()
    halves = [(scores[:45], y[:45], None), (scores[45:], y[45:])]
    for data in ((scores, y, None), halves):
        assert keras_ldam.adjust(passing(3), data).to_json() == expected
    for weighted in (0, 1):
        some = [(*batch[:2], *[np.ones(45)] * (i == weighted)) for i, batch in enumerate(halves)]
        with pytest.raises(ValueError, match="sample weights in every batch or in none"):
            keras_ldam.adjust(passing(3), some)


def test_examples_without_weight_are_no_examples_and_a_pydataset_is_read(rng):
    scores, y = of_frequencies(rng, 90, [0.5, 0.3, 0.2])
    model, kept = passing(3), np.arange(90) % 3 > 0
    few = keras_ldam.adjust(model, (scores[kept], y[kept]))

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return scores[index::2], y[index::2], kept[index::2].astype("float32")

    weighted = keras_ldam.adjust(model, Batches())
    assert weighted.examples.tolist() == few.examples.tolist()
    assert weighted.before["nll"].value == pytest.approx(few.before["nll"].value, rel=1e-5)


def test_a_model_is_adjusted_again_and_may_have_a_layer_of_any_name(rng):
    named = passing(3, head=keras.layers.Dense(3, name="probabilities"))
    once = keras_ldam.adjust(named, tau=1, counts=[5, 3, 2]).model
    twice = keras_ldam.adjust(once, tau=0.5, counts=[5, 3, 2]).model
    x = rng.normal(size=(4, 3)).astype("float32")
    powers = once.predict(x, verbose=0) / np.sqrt([5, 3, 2])
    expected = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(twice.predict(x, verbose=0), expected, rtol=1e-5)
    assert len(keras_ldam.with_probabilities(named).layers) == 3


def test_a_model_of_two_labels_may_be_adjusted_as_one_of_two_classes():
    model = passing(2, loss=keras_ldam.CrossEntropy([[5, 1], [3, 3]]))
    assert keras_ldam.adjust(model, (SCORES[:, :2], Y % 2)).layer.activation == "softmax"


def test_cosines_of_an_unknown_scale_get_one_from_the_data(rng):
    y = np.arange(300) % 3
    x = (np.eye(3)[y] + 0.7 * rng.normal(size=(300, 3))).astype("float32")
    model = passing(3, head=keras_ldam.CosineDense(3))
    model.layers[-1].kernel.assign(np.eye(3))
    found = keras_ldam.adjust(model, (x, y))
    assert "scale of the cosines is unknown" in str(found)
    assert found.after["nll"].value < found.before["nll"].value
    by_hand = keras_ldam.adjust(model, (x, y), scale=5)
    assert found.layer.scale == pytest.approx(by_hand.layer.scale, rel=1e-3)


def test_folds_and_draws_keep_the_classes(rng):
    labels = rng.integers(0, 3, (100, 1))
    parts = fitting.folds(labels, 4, seed=0)
    assert sum(parts).tolist() == [1] * 100
    for part in parts:
        sizes = np.bincount(labels[part, 0], minlength=3)
        assert abs(sizes - np.bincount(labels[:, 0]) / 4).max() < 1.1
    for index in fitting.draws(labels, 2, seed=0):
        assert np.bincount(labels[index, 0]).tolist() == np.bincount(labels[:, 0]).tolist()
        assert len(set(index.tolist())) < 100


# ----------------------------------------------------------------------------- bad input

Y = np.arange(60) % 3
SCORES = np.random.default_rng(0).normal(size=(60, 3)).astype("float32")


class Own(keras.Model):
    def call(self, inputs):
        return inputs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tau": -1}, "`tau` must be a finite number of at least 0. Received: -1"),
        ({"tau": float("nan")}, "`tau` must be a finite number of at least 0"),
        ({"tau": 1}, "`tau` needs `counts`"),
        ({"temperature": 0}, "`temperature` must be a finite number above 0"),
        ({"tau": 1, "target_prior": [1, 1, 1], "counts": [3, 2, 1]}, "pass one. Received: tau=1"),
        ({"target_prior": [0, 0, 0]}, "`target_prior` must be 3 finite numbers above 0"),
        ({"target_prior": [1, 1]}, "one entry for each of the 3 classes. Received: 2"),
        ({"target_prior": [1, 1, 1]}, "`target_prior` needs `source_prior`"),
        ({"offsets": [0, np.inf, 0]}, "`offsets` must be finite numbers"),
        ({"criterion": "f2"}, "Unknown criterion 'f2'; available: nll, balanced_accuracy"),
        ({"criterion": "cost"}, "needs `costs`"),
        ({"criterion": "cost", "costs": np.eye(2)}, r"shape \(3, 3\).* Received: shape \(2, 2\)"),
        ({"criterion": "cost", "costs": np.eye(3) - 1}, "not below 0 off the diagonal"),
        ({"costs": np.eye(3)}, '`costs` is for criterion="cost"'),
        ({"criterion": "recall_at"}, "needs `precision`"),
        ({"criterion": "recall_at", "precision": 0.5}, "needs `class_id` for 3 classes"),
        ({"criterion": "recall_at", "precision": 2.0}, "`precision` must be a number in"),
        ({"activation": "relu"}, "`activation` must be None, softmax or sigmoid"),
        ({"output": "other"}, "`output` chooses among the outputs|Unknown output"),
        ({"data": SCORES}, "`data` must be"),
        ({"data": (SCORES, np.zeros(60, int))}, "at least two examples of each .*: 0 of class 1"),
        ({"data": (SCORES, Y + 1)}, "Labels must be whole numbers in 0 … 2"),
        ({"data": (SCORES, np.zeros((60, 2)))}, r"Labels must have shape .* Received: shape"),
        ({"data": (SCORES, np.array(["a", "b", "c"])[Y])}, "Received: strings; number the classes"),
        ({"data": (SCORES[:0], Y[:0])}, "`data` must hold examples. Received: none"),
        ({"data": (SCORES * np.nan, Y)}, "must give finite numbers. Received: NaN .* 60 of 60"),
        ({"data": (SCORES, Y, -np.ones(60))}, "Sample weights must be finite numbers"),
        ({"data": (softmax(SCORES), Y)}, "expected to give scores, and gives probabilities"),
        ({"data": (SCORES, Y), "from_logits": False}, "expected to give probabilities, and .* out"),
    ],
)
def test_bad_arguments_get_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_ldam.adjust(passing(3), **arguments)


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("model", {}, "must be a Keras model"),
        (passing(3, "softmax"), {"scale": 30}, "`scale` is for scores"),
        (passing(3, head=keras_ldam.CosineDense(3)), {}, "softmax scale is unknown"),
        (passing(3, "sigmoid"), {"tau": 1}, "`tau` is for one class among several"),
        (Own(), {"data": (sigmoid(SCORES), Y)}, "may be scores or probabilities"),
        (Own(), {"data": (sigmoid(SCORES), Y), "from_logits": False}, "do not sum to 1"),
        (Own(), {"tau": 1}, "number of classes is unknown"),
        (
            passing(3, "softmax"),
            {"data": (SCORES, np.ones((60, 3)))},
            "A softmax has one label for each example",
        ),
        (
            passing(2, "sigmoid"),
            {"data": (SCORES[:, :2], np.tile([1, 0], (60, 1)))},
            "Received: 0 of label 0, without it",
        ),
    ],
)
def test_what_a_model_has_no_use_for_gets_one_sentence(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_ldam.adjust(model, **arguments)


def test_probabilities_of_a_model_that_does_not_tell_are_seen_by_their_sums():
    found = keras_ldam.adjust(Own(), (softmax(SCORES).astype("float32"), Y))
    assert found.layer.applied == "softmax"
    told = keras_ldam.adjust(Own(), (sigmoid(SCORES)[:, :1], Y == 2), from_logits=False)
    assert told.layer.applied == "sigmoid"


# ----------------------------------------------------------------------------- exports


@pytest.mark.parametrize("kind", ["sigmoid", "several outputs", "several labels"])
def test_an_adjusted_foreign_model_is_exported_and_answers_as_it_does(kind, rng, tmp_path):
    tf = pytest.importorskip("tensorflow")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("exports need the TensorFlow backend")
    from keras_ldam.serving.predictor import Predictor

    inputs = keras.Input((2, 2, 1))
    features = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    last = keras.layers.Dense(
        1 if kind == "sigmoid" else 3,
        kind.split()[0].replace("several", "softmax" if "outputs" in kind else "sigmoid"),
    )(features)
    outputs = {"a": last, "b": features} if kind == "several outputs" else last
    model = keras.Model(inputs, outputs)
    x = rng.integers(0, 256, (60, 2, 2, 1), dtype=np.uint8)
    y = np.arange(60) % (2 if kind == "sigmoid" else 3)
    if kind == "several labels":
        y = (rng.random((60, 3)) < 0.5).astype(int)
    names = ["cat", "dog"] if kind == "sigmoid" else ["cat", "dog", "owl"]

    found = keras_ldam.adjust(
        model, (x, y), criterion="balanced_accuracy", output="a" if "outputs" in kind else None
    )
    folder = keras_ldam.export_saved_model(found.model, tmp_path / "name", class_names=names)

    expected = found.model.predict(x, verbose=0)
    served = tf.saved_model.load(str(folder)).signatures["serving_default"](image=tf.constant(x))
    probabilities = served["probabilities"].numpy()
    own = probabilities[:, 1:] if kind == "sigmoid" else probabilities
    np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-6)
    if kind == "several labels":
        np.testing.assert_array_equal(served["present"].numpy(), expected > 0.5)
    paths = []
    for i, image in enumerate(x[:2]):
        paths.append(tmp_path / f"{i}.png")
        paths[-1].write_bytes(tf.io.encode_png(image).numpy())
    answers = list(Predictor(tmp_path / "name").predict([str(path).encode() for path in paths]))
    np.testing.assert_allclose([a["probabilities"] for a in answers], probabilities[:2], rtol=1e-5)
    assert [a["label"] for a in answers] == [names[i] for i in probabilities[:2].argmax(axis=1)]
    assert "keras_ldam.adjust" in (folder / "model_card.md").read_text()
    with pytest.raises(ValueError, match="adjusted already: pass `temperature` to"):
        keras_ldam.export_saved_model(
            found.model, tmp_path / "other", class_names=names, temperature=2.0
        )
