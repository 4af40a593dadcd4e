"""Errors per class against NumPy and scikit-learn. Runs on every backend."""

import json

import keras
import numpy as np
import pytest
from keras import ops

import keras_ldam

COUNTS = [500, 60, 20, 5]


def recalls_of(y, guesses):
    return np.array([np.mean(guesses[y == j] == j) for j in range(4)])


def recalls_of_scikit_learn(y, guesses):
    return pytest.importorskip("sklearn.metrics").recall_score(y, guesses, average=None)


@pytest.mark.parametrize("oracle", [recalls_of, recalls_of_scikit_learn])
def test_it_agrees_with_others_over_several_batches(oracle, rng):
    y, z = rng.integers(0, 4, size=200), rng.normal(size=(200, 4)).astype(np.float32)
    metric = keras_ldam.ClassErrors(COUNTS, per_class=True)
    for start in range(0, 200, 50):
        metric.update_state(y[start : start + 50], z[start : start + 50])
    result = {name: float(value) for name, value in metric.result().items()}
    guesses = z.argmax(1)
    recalls = oracle(y, guesses)
    assert result["balanced_accuracy"] == pytest.approx(recalls.mean())
    assert result["error"] == pytest.approx(np.mean(guesses != y))
    assert [result[f"error_{j}"] for j in range(4)] == pytest.approx(list(1 - recalls))
    assert result["many_error"] == pytest.approx(1 - recalls[0])
    assert result["medium_error"] == pytest.approx(1 - recalls[1:3].mean())
    assert result["few_error"] == pytest.approx(1 - recalls[3])


def test_a_class_not_seen_is_left_out_of_the_means():
    metric = keras_ldam.ClassErrors(COUNTS, per_class=True)
    metric.update_state([0, 1], np.eye(4)[[0, 2]])
    result = metric.result()
    assert float(result["balanced_error"]) == pytest.approx(0.5)
    assert np.isnan(float(result["error_3"]))


def test_one_hot_labels_and_sample_weights_count():
    metric = keras_ldam.ClassErrors([5, 5])
    metric.update_state(np.eye(2)[[0, 0]], np.eye(2)[[0, 1]], sample_weight=[3, 1])
    assert float(metric.result()["error"]) == pytest.approx(0.25)


def test_its_parts_stand_in_the_logs_of_fit(rng):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(
        "sgd", loss=keras_ldam.CrossEntropy([9, 3]), metrics=[keras_ldam.ClassErrors([9, 3])]
    )
    x, y = rng.normal(size=(12, 3)), np.repeat([0, 1], [9, 3])
    history = model.fit(x, y, validation_data=(x, y), verbose=0).history
    assert {"balanced_error", "few_error", "val_balanced_accuracy"} <= set(history)


def test_counts_that_do_not_fit_get_a_sentence():
    with pytest.raises(ValueError, match=r"must have 2 classes .* by `counts`"):
        keras_ldam.ClassErrors([5, 5]).update_state([0], np.zeros((1, 3)))


def test_a_label_that_is_no_class_gets_a_sentence():
    with pytest.raises(ValueError, match=r"Labels must be whole numbers in 0 … 3.*Received: 4"):
        keras_ldam.ClassErrors(COUNTS).update_state([0, 4], np.eye(4)[[0, 2]])


def test_a_group_without_an_example_has_no_error_and_not_a_perfect_one():
    metric = keras_ldam.ClassErrors([200, 50, 5])
    metric.update_state([0, 0], [[1, 0, 0], [0, 1, 0]])
    found = {name: float(value) for name, value in metric.result().items()}
    assert found["error"] == found["many_error"] == 0.5
    assert np.isnan(found["medium_error"]) and np.isnan(found["few_error"])
    metric.reset_state()
    assert all(np.isnan(float(value)) for value in metric.result().values())


def test_a_single_score_of_zero_is_not_above_zero():
    errors, z = keras_ldam.ClassErrors([90, 10]), np.array([[0.0], [-0.0], [0.1]], "float32")
    errors.update_state([0, 0, 1], z)
    assert float(errors.result()["error"]) == 0
    model = keras.Sequential([keras.Input((1,)), keras.layers.Identity()])
    model.compile(loss=keras_ldam.CrossEntropy([90, 10]), metrics=[errors])
    found = model.evaluate(z, np.array([0, 0, 1]), verbose=0, return_dict=True)
    assert found["error"] == 0  # In a graph, too, where 0 - x may become -x.


def test_metrics_that_average_over_the_last_axis_take_probabilities_too(rng):
    brier = keras_ldam.OfProbabilities(keras.metrics.MeanSquaredError(), scale=3.0, class_id=1)
    y, z = np.array([0, 1, 2, 1]), rng.normal(size=(4, 3)).astype("float32")
    brier.update_state(y, z, sample_weight=[1.0, 2.0, 0.0, 1.0])
    p = np.exp(3 * z[:, 1]) / np.exp(3 * z).sum(axis=1)
    expected = np.average((p - (y == 1)) ** 2, weights=[1, 2, 0, 1])
    assert float(brier.result()) == pytest.approx(expected, rel=1e-5)


def test_scores_that_are_not_numbers_are_wrong():
    metric = keras_ldam.ClassErrors([9, 9])
    metric.update_state([0, 0, 0], [[np.nan, np.nan], [1.0, np.nan], [1.0, 0.0]])
    assert float(metric.result()["error"]) == pytest.approx(2 / 3)


def test_a_name_of_its_own_keeps_two_apart(rng):
    x, y = rng.normal(size=(6, 4)), np.array([0, 0, 0, 0, 1, 1])
    inputs = keras.Input((4,))
    model = keras.Model(inputs, {k: keras.layers.Dense(2, name=k)(inputs) for k in ("a", "b")})
    loss = {k: keras_ldam.CrossEntropy([4, 2]) for k in ("a", "b")}
    metrics = {k: keras_ldam.ClassErrors([4, 2], name=k) for k in ("a", "b")}
    model.compile("sgd", loss=loss, metrics=metrics)
    found = model.evaluate(x, {"a": y, "b": y}, return_dict=True, verbose=0)
    scores = model.predict(x, verbose=0)
    for name in ("a", "b"):
        assert found[f"{name}_error"] == pytest.approx(np.mean(scores[name].argmax(-1) != y))


def test_labels_may_stand_in_a_column_and_predictions_may_be_dense(rng):
    y, z = rng.integers(0, 4, (2, 3, 5)), rng.normal(size=(2, 3, 5, 4)).astype(np.float32)
    weights = rng.uniform(size=(2, 3, 5)).astype(np.float32)
    flat, dense, column = (keras_ldam.ClassErrors(COUNTS) for _ in range(3))
    flat.update_state(y.ravel(), z.reshape(-1, 4), sample_weight=weights.ravel())
    dense.update_state(y, z, sample_weight=weights)
    column.update_state(y.reshape(-1, 1), z.reshape(-1, 4), sample_weight=weights.reshape(-1, 1))
    expected = {name: float(value) for name, value in flat.result().items()}
    for metric in (dense, column):
        found = {name: float(value) for name, value in metric.result().items()}
        assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "made",
    [
        lambda: keras_ldam.ClassErrors(COUNTS, ignore_class=np.int64(9), axis=np.int64(-1)),
        lambda: keras_ldam.ClassMargins(4, quantile=np.float32(0.25)),
        lambda: keras_ldam.GMean(np.int64(2), threshold=np.float32(0.5)),
        lambda: keras_ldam.LDAM(COUNTS, exponent=np.float32(0.25), ignore_class=np.int64(9)),
        lambda: keras_ldam.CosineDense(np.int64(4), scale=np.float32(15)),
    ],
)
def test_numbers_of_numpy_become_those_of_json(made):
    json.dumps(made().get_config())


def test_nothing_is_said_within_a_function_of_tensorflow(caplog):
    tf = pytest.importorskip("tensorflow")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("needs the TensorFlow backend")
    for metric in (keras_ldam.ClassErrors(COUNTS), keras_ldam.BalancedAccuracy(4)):
        tf.function(lambda y, z, metric=metric: metric.update_state(y, z))(
            tf.constant([0, 1]), tf.eye(4)[:2]
        )
    assert "AutoGraph" not in caplog.text


def test_it_comes_back_from_its_config():
    metric = keras_ldam.ClassErrors(COUNTS, per_class=True)
    again = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert (again.counts.tolist(), again.per_class) == (COUNTS, True)


def test_what_a_mask_leaves_out_is_no_error_in_evaluate(rng):
    words = rng.integers(1, 6, size=(4, 5))
    for row, length in enumerate((5, 3, 2, 1)):
        words[row, length:] = 0
    labels = rng.integers(0, 3, size=(4, 5))
    counts = [30, 20, 10]
    inputs = keras.Input((None,), dtype="int32")
    scores = keras.layers.Embedding(6, 3, mask_zero=True)(inputs)
    model = keras.Model(inputs, scores)
    metrics = [keras_ldam.ClassErrors(counts), keras_ldam.ClassMargins(3, low=-5, high=5)]
    model.compile(loss=keras_ldam.CrossEntropy(counts), metrics=metrics)
    found = model.evaluate(words, labels, verbose=0, return_dict=True)
    z, y = model.get_weights()[0][words[words > 0]], labels[words > 0]
    assert found["error"] == pytest.approx((z.argmax(-1) != y).mean())
    own = np.eye(3, dtype=bool)[y]
    margins = z[own] - np.where(own, -np.inf, z).max(axis=1)
    assert found["margin_mean"] == pytest.approx(margins.mean(), abs=1e-5)


def test_metrics_count_in_float32_whatever_floatx_is():
    usual = keras.config.floatx()
    keras.config.set_floatx("bfloat16")
    try:
        metric, margins = keras_ldam.ClassErrors([9, 9]), keras_ldam.ClassMargins(2)
    finally:
        keras.config.set_floatx(usual)
    labels = np.zeros(1000, "int32")
    metric.update_state(labels, np.tile([[1.0, 0.0]], (1000, 1)))
    assert float(metric._total.value()[0]) == 1000 and margins.dtype == "float32"


def test_what_a_mask_leaves_out_is_no_error(rng):
    z = keras.ops.convert_to_tensor(rng.normal(size=(2, 3, 4)).astype("float32"))
    y = rng.integers(0, 4, size=(2, 3))
    mask = np.array([[True, True, False], [False, True, False]])
    alone, masked = keras_ldam.ClassErrors(COUNTS), keras_ldam.ClassErrors(COUNTS)
    alone.update_state(y[mask], keras.ops.convert_to_numpy(z)[mask])
    z._keras_mask = keras.ops.convert_to_tensor(mask)
    masked.update_state(y, z)
    assert float(masked.result()["error"]) == float(alone.result()["error"])
    margins, of_masked = keras_ldam.ClassMargins(4), keras_ldam.ClassMargins(4)
    margins.update_state(y[mask], keras.ops.convert_to_numpy(z)[mask])
    of_masked.update_state(y, z)
    for name, value in margins.result().items():
        assert float(of_masked.result()[name]) == pytest.approx(float(value))


def test_a_weight_for_each_example_counts_for_all_its_steps():
    metric = keras_ldam.ClassErrors([9, 8])
    scores = [[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]]
    metric.update_state([[0, 1], [0, 0]], scores, sample_weight=[3.0, 1.0])
    assert float(metric.result()["error"]) == pytest.approx((3 + 1) / 8)


@pytest.mark.parametrize("labels", [[0, 1, 1], [[0, 1, 0]]])
def test_labels_of_a_wrong_shape_are_refused(labels):
    with pytest.raises(ValueError, match="`y_true` must hold integer labels"):
        keras_ldam.ClassErrors([9, 8]).update_state(labels, [[1.0, 0.0]])


def test_errors_are_exact_beyond_two_to_the_24_examples_in_one_update():
    n = 20_000_000
    scores = np.zeros((n, 2), np.float32)
    scores[:, 0] = 0.25
    scores[: n // 20, 1] = 0.5
    metric = keras_ldam.ClassErrors([90, 10])
    metric.update_state(np.zeros(n, np.int8), scores)
    assert float(metric.result()["error"]) == pytest.approx(0.05, rel=1e-7)


def test_the_mean_margin_still_moves_beyond_two_to_the_24_examples():
    metric = keras_ldam.ClassMargins(2)
    seen = np.zeros(2 * metric.bins, np.float32)
    seen[120] = 2**24
    metric._histogram._high.assign(seen)
    metric._sums._high.assign(np.array([2**24, 0], np.float32))
    for _ in range(8):
        metric.update_state([0], [[1.0, 0.0]])
    assert float(metric._sums.value()[0]) == 2**24 + 8
    assert float(metric.result()["margin_mean"]) == 1


def test_a_sum_that_is_large_still_grows_by_one():
    metric = keras_ldam.ClassErrors([5, 5])
    weight = np.float32(2**24)
    metric.update_state([0], [[1.0, 0.0]], [weight])
    for _ in range(4):
        metric.update_state([0], [[0.0, 1.0]])
    total, wrong = (float(s.value()[0]) for s in (metric._total, metric._wrong))
    assert (total, wrong) == (2**24 + 4, 4)


@pytest.mark.parametrize("metric", [keras_ldam.ClassErrors([5, 5]), keras_ldam.ClassMargins(2)])
def test_rows_without_a_label_are_left_out(metric):
    rows = np.array([[1, 0], [0, 0], [0, 1], [0, 0]], np.float32)
    scores = np.array([[0.9, 0.1], [0.1, 0.9], [0.4, 0.6], [0.3, 0.2]], np.float32)
    metric.update_state(rows, scores)
    ours = {k: float(v) for k, v in metric.result().items()}
    metric.reset_state()
    metric.update_state([0, 1], scores[[0, 2]])
    assert ours == {k: float(v) for k, v in metric.result().items()}


@pytest.mark.parametrize("floatx", ["float64", "float16", "bfloat16"])
def test_fit_counts_alike_whatever_floatx_is(floatx):
    if floatx == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX has no float64 unless it is asked for")
    keras.config.set_floatx(floatx)
    try:
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, dtype="float32")])
        errors, margins = keras_ldam.ClassErrors([5, 5]), keras_ldam.ClassMargins(2)
        model.compile("sgd", keras_ldam.CrossEntropy([5, 5]), metrics=[errors, margins])
        x = np.zeros((6000, 2), "float32")
        model.fit(x, np.arange(6000) % 2, batch_size=1500, verbose=0)
        assert float(ops.sum(errors._total.value())) == 6000
        for variable in (*errors.variables, *margins.variables):
            assert keras.backend.standardize_dtype(variable.dtype) == "float32"
    finally:
        keras.config.set_floatx("float32")


def test_a_class_whose_scores_are_nan_has_nan_margins():
    metric = keras_ldam.ClassMargins(3, per_class=True)
    nan = float("nan")
    metric.update_state([0, 1, 1], [[0.9, 0.1, 0.0], [0.1, nan, 0.0], [0.2, 0.6, 0.1]])
    found = {k: float(v) for k, v in metric.result().items()}
    assert np.isnan([found["margin_min_1"], found["margin_quantile_1"], found["margin_min"]]).all()
    assert found["margin_min_0"] == pytest.approx(0.8)


def test_weights_of_fit_reach_the_metric_among_the_weighted_ones_only(rng):
    x, y = rng.normal(size=(40, 4)).astype(np.float32), rng.integers(0, 4, 40)
    weights = (np.arange(40) < 20).astype(np.float32)  # The second half is void.
    model = keras.Sequential([keras.Input((4,)), keras_ldam.CosineDense(4)])
    plain, weighted = (keras_ldam.ClassErrors(COUNTS, name=name) for name in ("all", "labeled"))
    model.compile("sgd", keras_ldam.LDAM(COUNTS), metrics=[plain], weighted_metrics=[weighted])
    found = model.evaluate(x, y, sample_weight=weights, verbose=0, return_dict=True)
    wrong = model.predict(x, verbose=0).argmax(axis=1) != y
    assert found["all_error"] == pytest.approx(wrong.mean(), abs=1e-6)
    assert found["labeled_error"] == pytest.approx(wrong[:20].mean(), abs=1e-6)


@pytest.mark.parametrize(
    ("labels", "guesses", "expected"),
    [
        ([0, 0, 1, 2], [0, 0, 0, 0], True),
        ([0, 0, 1, 2], [0, 0, 0, 2], False),
        ([0, 0, 1, 1], [0, 1, 0, 1], False),
        ([0, 0, 1, 1], [0, 1, 0, 0], False),
        ([0, 0, 0, 0], [0, 0, 0, 0], False),  # There are no others.
        ([1, 2, 2, 1], [0, 0, 0, 0], False),  # Nor is any of class 0.
    ],
)
def test_class_errors_tell_whether_predictions_are_one_class(labels, guesses, expected):
    metric = keras_ldam.ClassErrors([5, 3, 2])
    metric.update_state(np.array(labels), np.eye(3)[guesses])
    assert metric.predicts_one_class() is expected


@pytest.mark.parametrize(("scores", "expected"), [([-1, -1], True), ([-1, 1], False)])
def test_several_labels_are_one_class_where_none_is_ever_found(scores, expected):
    metric = keras_ldam.ClassErrors([[5, 3], [6, 2]])
    metric.update_state(np.array([[0, 0], [1, 1]]), np.array([[-1.0, -1], scores]))
    assert metric.predicts_one_class() is expected


@pytest.mark.parametrize(("dtype", "num_classes"), [("uint8", 256), ("uint8", 300), ("int8", 128)])
def test_labels_of_eight_bits_are_those_of_32(dtype, num_classes):
    labels, guesses = np.array([0, 3, 3, 100]), np.array([0, 3, 5, 7])
    metric = keras_ldam.ClassErrors([5] * num_classes)
    metric.update_state(labels.astype(dtype), np.eye(num_classes, dtype="float32")[guesses])
    assert float(metric.result()["error"]) == 1 / 2
    assert float(metric.result()["balanced_error"]) == pytest.approx((0 + 1 / 2 + 1) / 3)


def test_what_grows_with_very_many_classes_is_bounded_by_a_sentence():
    with pytest.raises(ValueError, match=r"at most 10,000 classes, .* Received: 10,001 classes"):
        keras_ldam.ClassErrors(np.ones(10_001, int), per_class=True)
    with pytest.raises(ValueError, match="`bins` may be at most 20 for 1,000,000 classes, each"):
        keras_ldam.ClassMargins(10**6)


@pytest.mark.parametrize("metric", [keras_ldam.ClassErrors, keras_ldam.ClassMargins])
def test_errors_of_each_class_are_asked_for_by_true_or_false(metric):
    given = 3 if metric is keras_ldam.ClassMargins else [9, 5, 1]
    with pytest.raises(ValueError, match=r"`per_class` must be True or False\. Received: 'no'"):
        metric(given, per_class="no")


def test_groups_outlive_a_reset():
    metric = keras_ldam.ClassErrors(COUNTS)
    metric.reset_state()
    metric.update_state([0, 1, 2, 3], np.eye(4)[[0, 1, 1, 0]])
    found = {name: float(value) for name, value in metric.result().items()}
    assert [found[f"{group}_error"] for group in ("many", "medium", "few")] == [0, 0.5, 1]
