"""Tests of MomentumSGD against PyTorch's arithmetic, written in NumPy."""

import keras
import numpy as np
import pytest

from keras_ldam.optimizers import MomentumSGD


def torch_sgd(weight, gradients, rates, *, momentum, weight_decay, nesterov=False):
    """The update of `torch.optim.SGD`; the first velocity is the first gradient."""
    weight, velocity, path = np.array(weight, "float64"), None, []
    for gradient, rate in zip(gradients, rates, strict=True):
        gradient = gradient + weight_decay * weight
        velocity = gradient if velocity is None else momentum * velocity + gradient
        step = gradient + momentum * velocity if nesterov else velocity
        weight = weight - rate * step
        path.append(weight)
    return np.array(path)


def keras_path(optimizer, weight, gradients, rates):
    variable = keras.Variable(np.array(weight, "float32"))
    path = []
    for gradient, rate in zip(gradients, rates, strict=True):
        optimizer.learning_rate = rate
        optimizer.apply([keras.ops.convert_to_tensor(gradient, "float32")], [variable])
        path.append(keras.ops.convert_to_numpy(variable))
    return np.array(path)


@pytest.mark.parametrize("nesterov", [False, True])
def test_it_follows_torch_step_by_step_through_a_drop_of_the_rate(nesterov):
    rng = np.random.default_rng(0)
    weight, gradients = rng.normal(size=7), rng.normal(size=(30, 7))
    rates = [0.1] * 15 + [0.001] * 15
    optimizer = MomentumSGD(0.1, momentum=0.9, nesterov=nesterov, coupled_weight_decay=0.02)
    how = {"momentum": 0.9, "weight_decay": 0.02, "nesterov": nesterov}
    expected = torch_sgd(weight, gradients, rates, **how)
    path = keras_path(optimizer, weight, gradients, rates)
    np.testing.assert_allclose(path, expected, rtol=1e-5, atol=1e-6)


def test_after_a_drop_the_steps_shrink_at_once_as_the_closed_form_says():
    # For a constant gradient of 1, v_t = (1 - mu^t) / (1 - mu), and the step is rate * v_t.
    rates = [0.1] * 20 + [0.001] * 5
    path = keras_path(MomentumSGD(0.1, momentum=0.9), [0.0], np.ones((25, 1)), rates)
    steps = -np.diff(path[:, 0], prepend=0.0)
    expected = np.array(rates) * (1 - 0.9 ** np.arange(1, 26)) / (1 - 0.9)
    np.testing.assert_allclose(steps, expected, rtol=1e-3)
    # Keras' own carries the old rate along: its first step after the drop is still large.
    path = keras_path(keras.optimizers.SGD(0.1, momentum=0.9), [0.0], np.ones((25, 1)), rates)
    assert path[19, 0] - path[20, 0] > 50 * expected[20]


def test_weight_decay_equals_half_of_keras_l2_penalty():
    weight = np.array([2.0, -1.0])
    optimizer = MomentumSGD(0.1, momentum=0.5, coupled_weight_decay=0.1)
    decayed = keras_path(optimizer, weight, np.zeros((4, 2)), [0.1] * 4)
    value, penalised, velocity = weight, [], 0.0
    for _ in range(4):
        velocity = 0.5 * velocity + 2 * 0.05 * value  # gradient of 0.05 * value^2
        value = value - 0.1 * velocity
        penalised.append(value)
    np.testing.assert_allclose(decayed, penalised, rtol=1e-6)


def test_inside_fit_every_trainable_variable_decays_with_those_of_normalisation_and_biases():
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
    )
    for weight in model.trainable_weights:
        weight.assign(np.ones(weight.shape))
    # The loss does not depend on the weights, so the decay alone moves them.
    model.compile(
        MomentumSGD(0.1, momentum=0.0, coupled_weight_decay=0.5),
        loss=lambda y_true, y_pred: 0.0 * keras.ops.sum(y_pred, axis=-1),
    )
    model.fit(np.ones((4, 3)), np.ones((4, 2)), batch_size=4, verbose=0)
    for weight in model.trainable_weights:
        found = keras.ops.convert_to_numpy(weight)
        np.testing.assert_allclose(found, np.full(weight.shape, 0.95), rtol=1e-6)


def test_sparse_gradients_of_an_embedding_are_decayed_in_every_row():
    model = keras.Sequential([keras.Input((1,), dtype="int32"), keras.layers.Embedding(4, 1)])
    model.layers[0].embeddings.assign(np.ones((4, 1)))
    model.compile(
        MomentumSGD(0.1, momentum=0.9, coupled_weight_decay=0.5),
        loss=lambda y_true, y_pred: keras.ops.sum(y_pred, axis=(1, 2)),
    )
    model.fit(np.array([[2]]), np.ones((1, 1, 1)), verbose=0)
    expected = [[0.95], [0.95], [0.85], [0.95]]
    np.testing.assert_allclose(model.layers[0].embeddings, expected, rtol=1e-6)


def test_it_survives_serialisation_with_its_velocity(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    how = {"momentum": 0.8, "nesterov": True, "coupled_weight_decay": 0.1, "clipnorm": 1.0}
    model.compile(MomentumSGD(0.05, **how), "mse")
    x, y = np.random.default_rng(0).normal(size=(8, 3)), np.ones((8, 1))
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is MomentumSGD
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    for each in (model, loaded):
        each.fit(x, y, verbose=0)
    np.testing.assert_allclose(loaded.get_weights()[0], model.get_weights()[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"momentum": 1.0}, "momentum"),
        ({"momentum": -0.1}, "momentum"),
        ({"momentum": "a"}, "momentum"),
        ({"momentum": None}, "momentum"),
        ({"nesterov": "no"}, "nesterov"),
        ({"coupled_weight_decay": -1e-4}, "coupled_weight_decay"),
        ({"weight_decay": 1e-4}, "weight_decay"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        MomentumSGD(0.1, **arguments)


def test_rate_and_momentum_that_are_left_out_are_those_of_the_docstring():
    optimizer = MomentumSGD()
    assert float(optimizer.learning_rate) == pytest.approx(0.1)
    found = optimizer.momentum, optimizer.nesterov, optimizer.coupled_weight_decay
    assert found == (0.9, False, 0.0)


def test_building_again_keeps_the_velocity():
    variable, optimizer = keras.Variable(np.zeros(1, "float32")), MomentumSGD(1.0, momentum=0.5)
    optimizer.apply([keras.ops.ones((1,))], [variable])
    optimizer.build([variable])
    optimizer.apply([keras.ops.zeros((1,))], [variable])
    np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), [-1.5])


def test_variables_can_be_excluded_from_weight_decay():
    kept, shrunk = keras.Variable([1.0], name="kept"), keras.Variable([1.0], name="shrunk")
    optimizer = MomentumSGD(0.1, coupled_weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_list=[kept])
    optimizer.build([kept, shrunk])
    zero = keras.ops.zeros(1)
    optimizer.apply([zero, zero], [kept, shrunk])
    assert float(kept[0]) == 1.0
    assert float(shrunk[0]) == pytest.approx(0.95)
