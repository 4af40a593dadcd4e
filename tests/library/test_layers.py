"""The cosine head. Runs on every backend."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_ldam
from keras_ldam.layers import cosine_heads


def test_it_gives_the_cosine_of_features_and_class_vectors(rng):
    x = rng.normal(size=(5, 8)).astype(np.float32)
    layer = keras_ldam.CosineDense(3, use_bias=False)
    z = ops.convert_to_numpy(layer(x))
    w = layer.kernel.numpy()
    expected = x @ w / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(w, axis=0)
    np.testing.assert_allclose(z, expected, atol=1e-6)
    assert np.abs(z).max() <= 1 + 1e-6


def test_class_vectors_start_with_length_one():
    layer = keras_ldam.CosineDense(3)
    layer.build((None, 16))
    norms = np.linalg.norm(layer.kernel.numpy(), axis=0)
    np.testing.assert_allclose(norms, 1, rtol=1e-6)


def test_the_head_of_the_paper_has_no_bias():
    layer = keras_ldam.CosineDense(3, use_bias=False)
    layer.build((None, 16))
    assert layer.count_params() == 48


def test_a_bias_is_one_more_coordinate(rng):
    x = rng.normal(size=(5, 8)).astype(np.float32)
    layer = keras_ldam.CosineDense(3, bias_initializer=keras.initializers.RandomNormal(seed=1))
    z = values(layer(x))
    u = np.concatenate([x, np.ones((5, 1))], axis=1)
    v = np.concatenate([values(layer.kernel), values(layer.bias)[None]])
    expected = u @ v / np.linalg.norm(u, axis=1)[:, None] / np.linalg.norm(v, axis=0)
    np.testing.assert_allclose(z, expected, atol=1e-6)
    assert layer.count_params() == 27


@pytest.mark.parametrize(("units", "constant"), [(2, 1.0), (10, 1.0), (11, 5.0), (100, 5.0)])
def test_the_constant_is_larger_for_many_classes(units, constant):
    layer = keras_ldam.CosineDense(units)
    assert layer.constant == constant and layer.get_config()["constant"] == constant
    layer.build((None, 2))
    layer.bias.assign(np.ones(units))
    x = np.array([[3.0, 4.0]], "float32")
    z = values(layer(x))
    u, v = np.append(x[0], constant), np.vstack([values(layer.kernel), np.ones(units)])
    expected = u @ v / np.linalg.norm(u) / np.sqrt(2)
    np.testing.assert_allclose(z[0], expected, atol=1e-6)
    np.testing.assert_allclose(layer.unit_features(x)[0], u / np.linalg.norm(u), atol=1e-6)


def test_a_layer_of_many_classes_that_was_saved_before_has_the_constant_of_then():
    config = keras_ldam.CosineDense(100).get_config()
    assert keras_ldam.CosineDense.from_config(config).constant == 5.0
    del config["constant"]
    assert keras_ldam.CosineDense.from_config(config).constant == 1.0


@pytest.mark.parametrize(
    "constant", [0.0, -1.0, np.nan, "1", pytest.param(10**400, id="beyond floats")]
)
def test_a_constant_that_is_no_positive_number_is_refused(constant):
    with pytest.raises(ValueError, match="`constant` must be"):
        keras_ldam.CosineDense(3, constant=constant)


def test_a_layer_that_was_saved_before_there_was_a_bias_has_none():
    config = keras_ldam.CosineDense(3).get_config()
    assert keras_ldam.CosineDense.from_config(config).use_bias
    del config["use_bias"]
    assert not keras_ldam.CosineDense.from_config(config).use_bias


def test_a_bias_is_nearly_nothing_beside_long_features(rng):
    x = (1000 * rng.normal(size=(5, 8))).astype(np.float32)
    one, two = keras_ldam.CosineDense(3), keras_ldam.CosineDense(3, use_bias=False)
    one.build((None, 8))
    two.build((None, 8))
    two.kernel.assign(one.kernel)
    np.testing.assert_allclose(values(one(x)), values(two(x)), atol=1e-3)


def test_a_bias_bounds_the_gradient_of_short_features():
    # Without one it grows with 1/‖x‖.
    for use_bias, largest in ((True, 2.0), (False, np.inf)):
        hidden = keras.layers.Dense(4, use_bias=False, kernel_initializer="ones")
        model = keras.Sequential(
            [keras.Input((1,)), hidden, keras_ldam.CosineDense(2, use_bias=use_bias)]
        )
        model.compile(keras.optimizers.SGD(1.0), loss=keras_ldam.CrossEntropy([5, 5]))
        model.fit(np.full((1, 1), 1e-4), np.zeros(1), verbose=0)
        moved = np.abs(hidden.get_weights()[0] - 1).max() / 1e-4
        assert moved < largest
        if not use_bias:
            assert moved > 100


def test_the_length_of_the_features_does_not_matter(rng):
    x = rng.normal(size=(5, 8)).astype(np.float32)
    layer = keras_ldam.CosineDense(3, use_bias=False)
    short, long = layer(0.01 * x), layer(100 * x)
    np.testing.assert_allclose(ops.convert_to_numpy(short), ops.convert_to_numpy(long), atol=1e-6)


def test_features_that_are_all_zero_give_zero():
    for use_bias in (True, False):  # The bias starts at 0.
        layer = keras_ldam.CosineDense(3, use_bias=use_bias)
        np.testing.assert_array_equal(values(layer(np.zeros((2, 8), np.float32))), 0)


def test_it_works_in_float32_under_mixed_precision(rng):
    keras.config.set_dtype_policy("mixed_bfloat16")
    inputs = keras.Input((8,))
    outputs = keras_ldam.CosineDense(3)(keras.layers.Dense(8)(inputs))
    assert keras.backend.standardize_dtype(outputs.dtype) == "float32"


def test_it_comes_back_from_its_config():
    layer = keras_ldam.CosineDense(3, epsilon=1e-4, kernel_regularizer="l2", name="head")
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    assert again.get_config() == layer.get_config()


@pytest.mark.parametrize("units", [0, -1, 2.5, float("nan"), True, "3"])
def test_bad_units_get_a_sentence(units):
    with pytest.raises(ValueError, match="`units` must be a whole number"):
        keras_ldam.CosineDense(units)


@pytest.mark.parametrize("use_bias", ["no", 0, None])
def test_a_flag_is_true_or_false(use_bias):
    with pytest.raises(ValueError, match="`use_bias` must be True or False"):
        keras_ldam.CosineDense(3, use_bias=use_bias)


@pytest.mark.parametrize("epsilon", [-1e-6, float("nan"), "small"])
def test_a_bad_epsilon_gets_a_sentence(epsilon):
    with pytest.raises(ValueError, match="`epsilon` must be a number in"):
        keras_ldam.CosineDense(3, epsilon=epsilon)


def test_a_mask_goes_on_to_the_loss(rng):
    x = rng.normal(size=(4, 5, 3)).astype("float32")
    x[:, 3:] = 0.0
    model = keras.Sequential(
        [keras.Input((5, 3)), keras.layers.Masking(), keras_ldam.CosineDense(3)]
    )
    model.compile(loss=keras_ldam.LDAM([9, 5, 2]))
    y = rng.integers(0, 3, (4, 5))
    other = np.where(np.arange(5) < 3, y, (y + 1) % 3)
    losses = [model.evaluate(x, labels, verbose=0) for labels in (y, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] != pytest.approx(model.evaluate(x, (y + 1) % 3, verbose=0), rel=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "mixed_float16", "mixed_bfloat16"])
def test_too_few_digits_for_cosines_are_refused(dtype):
    with pytest.raises(ValueError, match="in half precision have too few steps"):
        keras_ldam.CosineDense(3, dtype=dtype)


def test_a_cosine_head_is_found_inside_nested_models():
    inputs = keras.Input((4,))
    inner = keras.Sequential([keras.layers.Dense(3), keras_ldam.CosineDense(2)])
    assert cosine_heads(keras.Model(inputs, inner(inputs)))
    assert not cosine_heads(keras.Model(inputs, keras.layers.Dense(2)(inputs)))


@pytest.mark.parametrize("epsilon", [1e-6, 1e-13, 0.0])
def test_features_that_are_all_zero_send_no_gradient_back(epsilon):
    # No ReLU between: it would hold back whatever the head sends.
    hidden = keras.layers.Dense(4, use_bias=False, kernel_initializer="zeros")
    head = keras_ldam.CosineDense(3, use_bias=False, epsilon=epsilon)
    model = keras.Sequential([keras.Input((8,)), hidden, head])
    model.compile(keras.optimizers.SGD(1.0), loss=keras_ldam.LDAM([5, 5, 5]))
    model.fit(np.ones((4, 8)), np.zeros(4), verbose=0)
    np.testing.assert_array_equal(hidden.get_weights()[0], 0)
    assert np.isfinite(model.layers[-1].get_weights()[0]).all()


def test_vectors_shorter_than_epsilon_count_as_zero():
    layer = keras_ldam.CosineDense(3, epsilon=0.1, use_bias=False)
    short, long = (values(layer(np.full((1, 4), x, np.float32))) for x in (0.01, 0.1))
    np.testing.assert_array_equal(short, 0)
    assert np.abs(long).max() > 0


def test_class_vectors_depend_on_the_seed_alone():
    def columns(seed):
        return values(keras_ldam.layers.UnitColumns(seed)((8, 3)))

    np.testing.assert_array_equal(columns(1), columns(1))
    assert not np.array_equal(columns(1), columns(2))
    assert not np.array_equal(columns(None), columns(None))


def test_each_argument_comes_back_from_its_config_with_its_value():
    layer = keras_ldam.CosineDense(
        3,
        epsilon=1e-4,
        kernel_initializer=keras_ldam.layers.UnitColumns(seed=5),
        kernel_regularizer=keras.regularizers.L2(0.5),
    )
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    assert (again.units, again.epsilon, again.use_bias) == (3, 1e-4, True)
    assert again.kernel_initializer.seed == 5
    assert float(again.kernel_regularizer.l2) == 0.5
    other = keras.layers.deserialize(
        keras.layers.serialize(keras_ldam.CosineDense(3, kernel_initializer="ones"))
    )
    assert type(other.kernel_initializer) is keras.initializers.Ones


def test_the_regularizer_of_the_class_vectors_counts():
    layer = keras_ldam.CosineDense(3, kernel_regularizer=keras.regularizers.L2(0.5))
    layer.build((None, 16))
    assert float(values(sum(layer.losses))) == pytest.approx(
        0.5 * 3, rel=1e-5
    )  # Three of length 1.


def test_features_of_unknown_size_get_a_sentence():
    with pytest.raises(ValueError, match="needs to know the number of features"):
        keras_ldam.CosineDense(3).build((None, None))


def values(tensor):
    return ops.convert_to_numpy(tensor)


def test_nan_goes_in_and_nan_comes_out():
    layer = keras_ldam.CosineDense(3)
    x = np.ones((3, 4), np.float32)
    x[1, 2], x[2, 0] = np.nan, np.inf
    z = values(layer(x))
    assert np.isfinite(z[0]).all() and np.isnan(z[1:]).all()
    layer.kernel.assign(np.full((4, 3), np.nan, np.float32))
    assert np.isnan(values(layer(x))).all()


def test_one_nan_in_the_examples_stops_a_training(rng):
    x = rng.normal(size=(32, 4)).astype("float32")
    x[5, 1] = np.nan
    model = keras.Sequential([keras.Input((4,)), keras_ldam.CosineDense(2)])
    model.compile("sgd", keras_ldam.LDAM([16, 16]))
    stop = keras.callbacks.TerminateOnNaN()
    history = model.fit(x, np.arange(32) % 2, epochs=3, verbose=0, callbacks=[stop]).history
    assert len(history["loss"]) == 1


@pytest.mark.parametrize("length", [1e-3, 1e15, 1e25, 1e38])
def test_cosines_do_not_depend_on_the_length_however_long(length, rng):
    x = rng.normal(size=(5, 8)).astype(np.float32)
    x /= np.abs(x).max()
    layer = keras_ldam.CosineDense(3, use_bias=False)
    np.testing.assert_allclose(values(layer(np.float32(length) * x)), values(layer(x)), atol=1e-6)


def test_whole_numbers_are_cast():
    layer = keras_ldam.CosineDense(2)
    np.testing.assert_allclose(
        values(layer(np.array([[3, 4]]))), values(layer(np.array([[3.0, 4.0]], np.float32)))
    )


def test_features_of_another_size_are_refused():
    layer = keras_ldam.CosineDense(2)
    layer(np.ones((1, 4), np.float32))
    with pytest.raises(ValueError, match="axis -1"):
        layer(np.ones((1, 5), np.float32))
