"""What `ClassMargins` tells of the margins of batches; `example_margins` by hand."""

import keras
import numpy as np
import pytest

import keras_ldam


def oracle_margin(labels, scores):
    """γ = z_y - max_{j≠y} z_j, one example at a time."""
    return np.array(
        [row[y] - max(z for j, z in enumerate(row) if j != y)
         for y, row in zip(labels, scores, strict=True)]
    )  # fmt: skip


@pytest.fixture
def scored_batch(rng):
    return rng.integers(0, 4, 60), rng.normal(size=(60, 4)).astype("float32")


def values(tensor):
    return keras.ops.convert_to_numpy(tensor)


def test_a_margin_is_the_labels_score_minus_the_best_other():
    found = keras_ldam.example_margins(
        [0, 1, 2], [[0.9, 0.2, 0.1], [0.9, 0.2, 0.1], [0.3, 0.3, 0.3]]
    )
    np.testing.assert_allclose(values(found), [0.7, -0.7, 0.0], atol=1e-6)


@pytest.mark.parametrize("form", ["sparse", "column", "one-hot"])
def test_margins_are_those_of_the_definition_however_labels_are_given(scored_batch, form):
    labels, scores = scored_batch
    given = {"sparse": labels, "column": labels[:, None], "one-hot": np.eye(4)[labels]}[form]
    found = keras_ldam.example_margins(given, scores)
    np.testing.assert_allclose(values(found), oracle_margin(labels, scores), atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 2], [[1.0], [1.0]], "Labels of a single score must be 0 or 1.*Received: 2"),
        ([[0, 1, 0]], [[1.0, 2.0]], r"Received: shape \(1, 3\)"),
        ([0, -1], [[1.0, 0.0], [0.0, 1.0]], r"Labels must be whole numbers in 0 … 1.*Received: -1"),
        ([0.7, 1], [[1.0, 0.0], [0.0, 1.0]], "Received: 0.7"),
    ],
)
def test_labels_and_scores_that_have_no_margin_get_a_sentence(labels, scores, message):
    with pytest.raises(ValueError, match=message):
        keras_ldam.example_margins(labels, scores)


def test_the_metric_gathers_batches_as_if_they_were_one(scored_batch):
    labels, scores = scored_batch
    metric = keras_ldam.ClassMargins(4, quantile=0.25, low=-6, high=6, bins=1200, per_class=True)
    for part in np.array_split(np.arange(60), 7):
        metric.update_state(labels[part], scores[part])
    found = {name: float(value) for name, value in metric.result().items()}
    margins = oracle_margin(labels, scores)
    own = [margins[labels == j] for j in range(4)]
    np.testing.assert_allclose(found["margin_min"], margins.min(), atol=1e-6)
    np.testing.assert_allclose(found["margin_mean"], margins.mean(), atol=1e-6)
    for j in range(4):
        np.testing.assert_allclose(found[f"margin_min_{j}"], own[j].min(), atol=1e-6)
        quantile = np.quantile(own[j], 0.25, method="inverted_cdf")
        assert abs(found[f"margin_quantile_{j}"] - quantile) < 0.011  # A bin is 0.01 wide.
    metric.reset_state()
    metric.update_state([1], [[0.0, 0.5, 0.0, 0.0]])
    fresh = {name: float(value) for name, value in metric.result().items()}
    assert fresh["margin_min"] == 0.5
    assert np.isnan(fresh["margin_min_0"])


def test_the_metric_leaves_out_examples_of_no_weight():
    metric = keras_ldam.ClassMargins(2)
    metric.update_state([0, 1], [[0.9, 0.1], [0.9, 0.1]], sample_weight=[1.0, 0.0])
    np.testing.assert_allclose(float(metric.result()["margin_min"]), 0.8, atol=1e-6)


def test_the_metric_works_in_a_compiled_fit_and_survives_saving(tmp_path, rng):
    model = keras.Sequential([keras.Input((3,)), keras_ldam.CosineDense(3)])
    x, y = rng.normal(size=(12, 3)).astype("float32"), np.arange(12) % 3
    model.compile(
        "sgd", loss=keras_ldam.LDAM([4, 4, 4]), metrics=[keras_ldam.ClassMargins(3, quantile=0.1)]
    )
    model.fit(x, y, verbose=0)
    logs = model.evaluate(x, y, return_dict=True, verbose=0)
    margins = oracle_margin(y, model.predict_on_batch(x))
    np.testing.assert_allclose(logs["margin_min"], margins.min(), atol=1e-6)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.evaluate(x, y, return_dict=True, verbose=0)["margin_min"] == logs["margin_min"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "`num_classes` must be a whole number of at least 2"),
        ({"num_classes": 3, "quantile": 2}, "`quantile` must be a number in"),
        ({"num_classes": 3, "low": 1, "high": 1}, "`low` must be below `high`"),
        ({"num_classes": 3, "bins": 0}, "`bins` must be a whole number"),
    ],
)
def test_a_metric_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_ldam.ClassMargins(**arguments)


def test_one_hot_labels_and_weights_leave_the_margins_of_what_weighs(scored_batch):
    labels, scores = scored_batch
    weights = (np.arange(60) % 3 > 0).astype("float32")
    whole, part = (
        keras_ldam.ClassMargins(4, quantile=0.25, low=-6, high=6, bins=1200) for _ in range(2)
    )
    whole.update_state(np.eye(4)[labels], scores, sample_weight=weights)
    part.update_state(labels[weights > 0], scores[weights > 0])
    expected = {name: float(value) for name, value in part.result().items()}
    assert {name: float(value) for name, value in whole.result().items()} == pytest.approx(expected)


def test_margins_beyond_the_histogram_count_at_its_ends():
    metric = keras_ldam.ClassMargins(2, quantile=0.5, low=0.0, high=1.0, bins=10, per_class=True)
    metric.update_state([0, 1], [[3.0, 0.0], [3.0, 0.0]])
    found = {name: float(value) for name, value in metric.result().items()}
    assert 0.9 <= found["margin_quantile_0"] <= 1.0
    assert 0.0 <= found["margin_quantile_1"] <= 0.1
    assert found["margin_quantile"] == pytest.approx(
        (found["margin_quantile_0"] + found["margin_quantile_1"]) / 2
    )


def test_infinite_margins_count_at_the_ends_of_the_histogram_too():
    metric = keras_ldam.ClassMargins(2, quantile=0.5, high=1.0, per_class=True)
    for _ in range(2):
        metric.update_state([0, 1], [[0.0, -np.inf], [0.25, 0.5]])
    found = {name: float(value) for name, value in metric.result().items()}
    assert found["margin_min"] == found["margin_min_1"] == 0.25
    assert found["margin_mean"] == np.inf and found["margin_min_0"] > 1e38
    assert found["margin_quantile_0"] == pytest.approx(1.0, abs=0.02)


def test_each_argument_of_the_metric_comes_back_from_its_config():
    arguments = {"quantile": 0.1, "low": -1.0, "high": 3.0, "bins": 7, "per_class": True}
    metric = keras_ldam.ClassMargins(3, **arguments)
    again = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert again.num_classes == 3
    assert {name: getattr(again, name) for name in arguments} == arguments


def test_the_metric_starts_again_on_every_backend():
    metric = keras_ldam.ClassMargins(2)
    metric.update_state([0], [[0.0, 0.5]])
    metric.reset_state()
    metric.update_state([0], [[0.75, 0.5]])
    assert float(metric.result()["margin_min"]) == 0.25


def test_the_quantile_zero_is_the_smallest_margin():
    metric = keras_ldam.ClassMargins(2, quantile=0.0, per_class=True)
    assert all(np.isnan(float(value)) for value in metric.result().values())
    metric.update_state([0, 0], [[0.9, 0.1], [0.6, 0.4]])
    found = metric.result()
    assert float(found["margin_quantile"]) == pytest.approx(0.2, abs=0.02)
    assert float(found["margin_min"]) == pytest.approx(0.2, abs=1e-6)


def test_a_class_whose_scores_are_nan_has_no_margin():
    metric = keras_ldam.ClassMargins(2, quantile=0.5, per_class=True)
    metric.update_state([0, 1], np.array([[1.0, 0.0], [np.nan, np.nan]], "float32"))
    found = {name: float(value) for name, value in metric.result().items()}
    assert found["margin_min_0"] == 1
    assert np.isnan([found[f"margin_{name}_1"] for name in ("min", "quantile")]).all()
