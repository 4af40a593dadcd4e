"""Sharpness-aware training, against a step computed by hand in NumPy."""

import keras
import numpy as np
import pytest

import keras_ldam
from keras_ldam import SharpnessAwareTraining

X = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
LABELS = np.array([0, 1, 1, 0, 2, 1])


def linear(policy=None):
    keras.utils.set_random_seed(3)
    layers = [keras.Input((3,)), keras.layers.Dense(4, use_bias=False, dtype=policy)]
    return keras.Sequential([*layers, keras.layers.Dense(3, dtype="float32")])


def compiled(model, *, rho, optimizer=None, **how):
    """Eager unless asked otherwise: compiling takes longer than a step."""
    trained = SharpnessAwareTraining(model, rho=rho)
    loss = keras_ldam.CrossEntropy([2, 2, 2])
    optimizer = optimizer or keras.optimizers.SGD(0.5)
    trained.compile(optimizer, loss=loss, **{"run_eagerly": True, **how})
    return trained


def gradients(kernel, head, bias):
    """Of the mean softmax cross-entropy over all examples."""
    hidden = X @ kernel
    powers = np.exp(hidden @ head + bias)
    slope = (powers / powers.sum(1, keepdims=True) - np.eye(3)[LABELS]) / len(LABELS)
    return [X.T @ slope @ head.T, hidden.T @ slope, slope.sum(0)]


def by_hand(weights, *, rho, steps=1):
    weights = [w.astype("float64") for w in weights]
    for _ in range(steps):
        first = gradients(*weights)
        norm = np.sqrt(sum((g**2).sum() for g in first))
        second = gradients(*(w + rho * g / norm for w, g in zip(weights, first, strict=True)))
        weights = [w - 0.5 * g for w, g in zip(weights, second, strict=True)]
    return weights


def assert_close(found, expected, atol=1e-6):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=atol)


@pytest.mark.parametrize(
    "how", [{"run_eagerly": False}, {}, {"run_eagerly": False, "jit_compile": True}]
)
def test_a_step_is_by_the_gradient_at_the_worst_place_nearby(how):
    model = linear()
    before = model.get_weights()
    trained = compiled(model, rho=0.7, **how)
    history = trained.fit(X, LABELS, batch_size=6, epochs=2, verbose=0, shuffle=False).history
    assert_close(model.get_weights(), by_hand(before, rho=0.7, steps=2))
    powers = np.exp(X @ before[0] @ before[1] + before[2])
    chances = powers[np.arange(6), LABELS] / powers.sum(1)
    # The loss that is shown is that of the weights themselves.
    assert history["loss"][0] == pytest.approx(-np.log(chances).mean(), rel=1e-5)


def test_a_tiny_move_is_plain_training():
    expected = linear()
    expected.compile(
        keras.optimizers.SGD(0.5), loss=keras_ldam.CrossEntropy([2, 2, 2]), run_eagerly=True
    )
    expected.fit(X, LABELS, batch_size=6, verbose=0)
    model = linear()
    compiled(model, rho=1e-6).fit(X, LABELS, batch_size=6, verbose=0)
    assert_close(model.get_weights(), expected.get_weights())


def test_the_move_does_not_depend_on_the_scale_of_the_loss():
    # float16's loss scaling multiplies both gradients, and takes it out of the step.
    model = linear("mixed_float16")
    before = model.get_weights()
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5))
    compiled(model, rho=0.7, optimizer=optimizer).fit(X, LABELS, batch_size=6, verbose=0)
    assert_close(model.get_weights(), by_hand(before, rho=0.7), atol=2e-3)


def test_moving_statistics_are_those_of_the_batch_at_the_weights_themselves():
    def with_statistics():
        keras.utils.set_random_seed(5)
        layers = [keras.layers.Dense(4), keras.layers.BatchNormalization(momentum=0.5)]
        return keras.Sequential([keras.Input((3,)), *layers, keras_ldam.CosineDense(3)])

    seen = []
    for rho in (1e-6, 2.0):
        model = with_statistics()
        compiled(model, rho=rho).fit(X, LABELS, batch_size=6, verbose=0)
        statistics = model.layers[1].non_trainable_weights
        seen.append([keras.ops.convert_to_numpy(value) for value in statistics])
    assert_close(*seen)
    assert np.abs(seen[0][0]).max() > 0.01


def test_losses_of_several_outputs_are_those_at_the_weights_themselves():
    inputs = keras.Input((3,))
    outputs = {name: keras.layers.Dense(2, name=name)(inputs) for name in "ab"}
    wrapper = SharpnessAwareTraining(keras.Model(inputs, outputs), rho=2.0)
    losses = {name: keras_ldam.CrossEntropy([2, 2]) for name in "ab"}
    wrapper.compile("sgd", losses, run_eagerly=keras.backend.backend() != "jax")
    x, y = np.random.default_rng(0).normal(size=(4, 3)).astype("float32"), np.array([0, 1, 0, 1])
    history = wrapper.fit(x, dict.fromkeys("ab", y), batch_size=4, verbose=0).history
    assert history["a_loss"][0] + history["b_loss"][0] == pytest.approx(history["loss"][0])


def test_inputs_are_not_rounded_under_a_mixed_policy():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        inputs = keras.Input((1,))
        scaled = keras.layers.Rescaling(1e-5, dtype="float32")(inputs)
        model = keras.Model(inputs, keras.layers.Dense(2, dtype="float32")(scaled))
        x = np.array([[70_000.0], [65_537.0]], "float32")  # The largest of float16 is 65,504.
        expected = keras.ops.convert_to_numpy(model(x))
        for wrapper in (
            SharpnessAwareTraining(model, rho=0.1),
            keras_ldam.ChunkedTraining(model),
        ):
            found = keras.ops.convert_to_numpy(wrapper(x))
            assert np.all(np.isfinite(found))
        found = keras.ops.convert_to_numpy(SharpnessAwareTraining(model, rho=0.1)(x))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    finally:
        keras.config.set_dtype_policy("float32")


def test_frozen_weights_neither_move_nor_count_in_the_norm():
    model = linear()
    model.layers[0].trainable = False
    before = model.get_weights()
    compiled(model, rho=0.7).fit(X, LABELS, batch_size=6, verbose=0)
    first = gradients(*before)[1:]
    norm = np.sqrt(sum((g**2).sum() for g in first))
    moved = [before[0], *(w + 0.7 * g / norm for w, g in zip(before[1:], first, strict=True))]
    second = gradients(*moved)[1:]
    expected = [before[0], *(w - 0.5 * g for w, g in zip(before[1:], second, strict=True))]
    assert_close(model.get_weights(), expected)


def test_a_batch_without_a_gradient_moves_nothing():
    model = linear()
    before = model.get_weights()
    trained = compiled(model, rho=0.7)
    trained.fit(X, LABELS, sample_weight=np.zeros(6), batch_size=6, verbose=0)
    assert_close(model.get_weights(), before, atol=0)


def test_a_checkpoint_resumes_where_an_uninterrupted_run_goes(tmp_path):
    def made():
        model = linear()
        return model, compiled(model, rho=0.7, optimizer=keras_ldam.MomentumSGD(0.1))

    model, trained = made()
    trained.fit(X, LABELS, batch_size=6, verbose=0)
    trained.save_weights(tmp_path / "checkpoint.weights.h5")
    trained.fit(X, LABELS, batch_size=6, verbose=0)
    other_model, other = made()
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "checkpoint.weights.h5")
    other.fit(X, LABELS, batch_size=6, verbose=0)
    assert_close(other_model.get_weights(), model.get_weights())


def test_a_saved_wrapper_comes_back_with_its_length(tmp_path):
    trained = compiled(linear(), rho=0.7)
    trained.save(tmp_path / "trained.keras")
    loaded = keras.models.load_model(tmp_path / "trained.keras")
    assert (type(loaded), loaded.rho) == (SharpnessAwareTraining, 0.7)
    assert_close(loaded.model.get_weights(), trained.model.get_weights())


@pytest.mark.parametrize("rho", [0, -1, float("nan"), float("inf"), "1"])
def test_an_impossible_length_is_refused(rho):
    with pytest.raises(ValueError, match=r"`rho` must be a number in \(0, "):
        SharpnessAwareTraining(linear(), rho=rho)


def test_a_model_that_is_not_built_is_refused():
    with pytest.raises(ValueError, match="`model` must be a built Keras model"):
        SharpnessAwareTraining(keras.Sequential([keras.layers.Dense(2)]))


@pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="Keras' step on JAX never assigns the moved weights"
)
def test_weights_are_back_in_place_when_the_second_pass_fails(monkeypatch):
    model = linear()
    before = model.get_weights()
    trained = compiled(model, rho=0.7)
    passes, compute = [], trained.compute_loss

    def interrupted(*args, **kwargs):
        passes.append(args)
        if len(passes) == 2:
            raise KeyboardInterrupt
        return compute(*args, **kwargs)

    monkeypatch.setattr(trained, "compute_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained.fit(X, LABELS, batch_size=6, verbose=0)
    assert_close(model.get_weights(), before, atol=1e-7)
