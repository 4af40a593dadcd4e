"""Several devices and machines give what one gives, and what is wrong gets a sentence."""

import contextlib
import functools
import json
import os
import socket
import threading
import time
import warnings

import keras
import numpy as np
import pytest
import replicas
import tensorflow as tf

import keras_ldam
from keras_ldam import distribution, hardware, keras_internals
from keras_ldam.cluster import meet


@pytest.fixture(scope="module")
def mirrored():
    return distribution.make_strategy("mirrored", replicas=2)


# What is to be expected is computed step by step: tracing takes longer than these few steps.
ONE_BY_ONE = {"run_eagerly": True}


@pytest.fixture(scope="module")
def on_one_device():
    return replicas.train(None, keras.Model, **ONE_BY_ONE)


def assert_same(found, expected):
    np.testing.assert_allclose(found[0]["loss"], expected[0]["loss"], rtol=1e-5)
    for ours, theirs in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("jit", [False, True])
def test_two_replicas_train_as_one_device_and_are_traced_once(jit, mirrored, on_one_device):
    found = replicas.train(mirrored, distribution.ReplicatedModel, jit_compile=jit)
    assert_same(found, on_one_device)
    metrics = {name: values for name, values in found[0].items() if name != "loss"}
    for name, values in metrics.items():
        assert values == pytest.approx(on_one_device[0][name], abs=1e-6), name
    # In both phases together: once for each replica. The switch of DRW causes no other.
    assert found[2] == 2


def test_the_loss_is_exact_in_the_plain_fit_of_keras_too(mirrored, on_one_device):
    found = replicas.train(mirrored, keras.Model)
    assert found[0]["loss"] == pytest.approx(on_one_device[0]["loss"], rel=1e-5)
    for ours, theirs in zip(found[1], on_one_device[1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_gradients_are_clipped_after_they_have_been_summed(mirrored):
    def optimizer():
        return keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=0.5)

    expected = replicas.train(None, keras.Model, optimizer=optimizer, **ONE_BY_ONE)
    found = replicas.train(mirrored, distribution.ReplicatedModel, optimizer=optimizer)
    assert_same(found, expected)


def test_accumulated_gradients_are_clipped_once_on_one_device():
    def optimizer():
        return keras.optimizers.SGD(1.0, global_clipnorm=0.1, gradient_accumulation_steps=2)

    loss = functools.partial(keras_ldam.CrossEntropy, reduction="mean_over_data")
    how = {"optimizer": optimizer, "loss": loss}
    expected = replicas.train(None, keras.Model, **how, **ONE_BY_ONE)
    assert_same(replicas.train(None, distribution.ReplicatedModel, **how), expected)


def test_a_loss_of_keras_counts_by_examples(mirrored):
    def loss(counts):
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def trained(strategy, model_class):
        with strategy.scope() if strategy else tf.name_scope("one"):
            model = model_class(inputs := keras.Input((6,)), keras.layers.Dense(
                5, kernel_initializer=keras.initializers.GlorotUniform(1))(inputs))  # fmt: skip
            how = {"jit_compile": False} if strategy else ONE_BY_ONE
            model.compile(keras.optimizers.SGD(0.1), loss=loss(None), **how)
        history = model.fit(replicas.batches(), epochs=2, verbose=0, shuffle=False)
        return history.history, model.get_weights()

    assert_same(trained(mirrored, distribution.ReplicatedModel), trained(None, keras.Model))


def test_several_steps_may_run_without_a_return_to_python(mirrored, on_one_device):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Your input ran out of data")
        found = replicas.train(mirrored, distribution.ReplicatedModel, steps_per_execution=4)
    assert_same(found, on_one_device)


def test_several_steps_end_with_the_data(mirrored):
    with mirrored.scope():
        noise = keras.layers.GaussianNoise(1e-3, seed=1)
        inputs = keras.Input((6,))
        model = distribution.ReplicatedModel(inputs, keras_ldam.CosineDense(5)(noise(inputs)))
        loss = keras_ldam.LDAM(replicas.COUNTS)
        model.compile("adam", loss=loss, steps_per_execution=4, jit_compile=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Your input ran out of data")
        model.fit(replicas.batches().take(3), epochs=2, verbose=0, shuffle=False)
    assert int(model.optimizer.iterations.numpy()) == 6  # A step without data counted, too.
    assert noise.seed_generator.state.numpy()[1] == 6


@pytest.mark.parametrize(
    ("reduction", "weighted"),
    [("sum_over_batch_size", False), ("mean_with_sample_weight", True)],
)
def test_a_loss_of_keras_over_masked_steps_does_not_depend_on_the_split(
    reduction, weighted, mirrored
):
    x = np.random.default_rng(0).normal(size=(6, 4, 3)).astype("float32")
    x[:2, 1:] = 0  # Masked; one replica has most of it.
    y = np.random.default_rng(1).integers(0, 2, (6, 4))
    weights = (np.arange(1.0, 25.0).reshape(6, 4),) if weighted else ()

    def trained(strategy, model_class):
        keras.utils.set_random_seed(0)
        with strategy.scope() if strategy else contextlib.nullcontext():
            inputs = keras.Input((4, 3))
            scores = keras.layers.Dense(2)(keras.layers.Masking()(inputs))
            model = model_class(inputs, scores)
            loss = keras.losses.SparseCategoricalCrossentropy(True, reduction=reduction)
            how = {"jit_compile": False} if strategy else ONE_BY_ONE
            model.compile(keras.optimizers.SGD(0.5), loss=loss, **how)
        data = tf.data.Dataset.from_tensor_slices((x, y, *weights)).batch(4)
        history = model.fit(data, epochs=2, shuffle=False, verbose=0)
        return history.history, model.get_weights()

    assert_same(trained(mirrored, distribution.ReplicatedModel), trained(None, keras.Model))


def test_sharpness_aware_replicas_move_by_the_gradient_of_the_whole_batch(mirrored, on_one_device):
    def wrapped(wrapper):
        return lambda inputs, outputs: wrapper(keras.Model(inputs, outputs), rho=0.5)

    expected = replicas.train(None, wrapped(keras_ldam.SharpnessAwareTraining), **ONE_BY_ONE)
    wrapper = distribution.ReplicatedSharpnessAwareTraining
    found = replicas.train(mirrored, wrapped(wrapper), jit_compile=True)
    assert_same(found, expected)
    assert found[0]["error"] == pytest.approx(expected[0]["error"], abs=1e-6)
    assert np.abs(expected[1][0] - on_one_device[1][0]).max() > 0.1  # Not without effect.


def test_sharpness_aware_replicas_keep_statistics_draw_anew_and_leave_a_checkpoint(
    mirrored, tmp_path
):
    def made(wrapper, rho):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        x = keras.layers.Dense(4, dtype="mixed_bfloat16")(inputs)
        x = keras.layers.BatchNormalization(momentum=0.5)(x)
        dropout = keras.layers.Dropout(0.2, seed=3)
        model = keras.Model(inputs, keras_ldam.CosineDense(5, use_bias=False)(dropout(x)))
        trained = wrapper(model, rho=rho)
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        trained.compile(optimizer, loss=keras_ldam.LDAM(replicas.COUNTS), run_eagerly=True)
        optimizer.build(trained.trainable_variables)
        return trained, dropout.seed_generator.state

    seen = []
    for rho in (1e-6, 2.0):
        with mirrored.scope():
            trained, state = made(distribution.ReplicatedSharpnessAwareTraining, rho)
        trained.fit(replicas.batches().take(1), epochs=1, verbose=0, shuffle=False)
        states = [list(s.numpy()) for s in mirrored.experimental_local_results(state.value)]
        assert states == [[3, 2], [4, 2]]  # A step of two passes.
        seen.append((trained.model.layers[2].get_weights()[2:], trained.model.get_weights()[-1]))
    (statistics, head), (others, other_head) = seen
    assert np.abs(head - other_head).max() > 0.01
    for one, two in zip(statistics, others, strict=True):
        assert np.abs(one).max() > 0.01
        np.testing.assert_array_equal(one, two)

    trained.save_weights(tmp_path / "checkpoint.weights.h5")
    other, _ = made(keras_ldam.SharpnessAwareTraining, 2.0)
    other.load_weights(tmp_path / "checkpoint.weights.h5")
    kept = [*trained.weights, *trained.optimizer.variables]
    for one, two in zip(kept, [*other.weights, *other.optimizer.variables], strict=True):
        np.testing.assert_array_equal(one.numpy(), two.numpy())


def test_adversarial_replicas_train_as_one_device(mirrored):
    # Two classes, of which one replica may have one alone; a last batch of three texts.
    words = np.random.default_rng(0).integers(1, 20, (19, 5)).astype("int32")
    labels = np.array([0] * 14 + [1] * 5)

    def trained(strategy, wrapper, *, noise=None, **how):
        keras.utils.set_random_seed(0)
        with strategy.scope() if strategy else contextlib.nullcontext():
            noise = noise and noise()
            inputs = keras.Input((5,), dtype="int32")
            x = keras.layers.Embedding(20, 4)(inputs)
            x = keras.layers.GlobalAveragePooling1D()(x)
            x = keras.layers.Dense(3, "tanh")(x)
            if noise is not None:
                x = noise(x)
            model = keras.Model(inputs, keras_ldam.CosineDense(2)(x))
            made = wrapper(model)
            loss = keras_ldam.LDAM([14, 5], gradual=False)
            made.compile(keras.optimizers.SGD(0.5, global_clipnorm=0.4), loss=loss, **how)
        data = tf.data.Dataset.from_tensor_slices((words, labels)).batch(8)
        history = made.fit(data, epochs=3, shuffle=False, verbose=0, callbacks=[keras_ldam.DRW(1)])
        return history.history, model.get_weights()

    def adversarial(wrapper, epsilon):
        return lambda model: wrapper(model, epsilon=epsilon)

    expected = trained(None, adversarial(keras_ldam.AdversarialTraining, 2.0), **ONE_BY_ONE)
    wrapper = distribution.ReplicatedAdversarialTraining
    layers = []

    def noise():
        layers.append(keras.layers.GaussianNoise(1e-7, seed=1))
        return layers[-1]

    found = trained(mirrored, adversarial(wrapper, 2.0), noise=noise, jit_compile=True)
    assert_same(found, expected)
    # Both passes of nine steps have drawn.
    assert layers[0].seed_generator.state.numpy()[1] == 18
    weaker = trained(None, adversarial(keras_ldam.AdversarialTraining, 1.0), **ONE_BY_ONE)
    assert np.abs(weaker[1][1] - expected[1][1]).max() > 1e-3  # The perturbation has an effect.


@pytest.mark.parametrize(
    "name", ["ReplicatedAdversarialTraining", "ReplicatedSharpnessAwareTraining"]
)
def test_replicated_wrappers_are_saved_and_loaded(name, tmp_path):
    model = keras.Sequential([keras.Input((3,), dtype="int32"), keras.layers.Embedding(5, 2)])
    model.add(keras.layers.GlobalAveragePooling1D())
    setting = {"epsilon": 0.5} if "Adversarial" in name else {"rho": 0.5}
    wrapper = getattr(distribution, name)(model, **setting)
    wrapper.compile("sgd", loss=keras_ldam.CrossEntropy([2, 1]), jit_compile=False)
    wrapper.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded).__name__ == name and loaded.compiled
    words = np.array([[1, 2, 3]])
    np.testing.assert_array_equal(loaded.predict(words, verbose=0), model.predict(words, verbose=0))


def test_weights_that_move_by_the_gradient_of_one_replica_are_refused(mirrored):
    model = keras.Sequential([keras.Input((3,)), keras_ldam.CosineDense(2)])
    alone = keras_ldam.SharpnessAwareTraining(model, rho=1.0)
    with mirrored.scope():
        alone.compile("sgd", keras_ldam.CrossEntropy([1, 1]), run_eagerly=True)
    data = tf.data.Dataset.from_tensors((np.ones((2, 3)), np.zeros(2, "int32")))
    with pytest.raises(ValueError, match=r"use keras_ldam\.distribution"):
        mirrored.run(alone.train_step, args=(next(iter(data)),))


def test_replicas_end_an_epoch_with_the_same_statistics_and_none_that_is_not_a_number(mirrored):
    with mirrored.scope():
        inputs = keras.Input((6,))
        x = keras.layers.BatchNormalization(momentum=0.5)(inputs)
        model = distribution.ReplicatedModel(inputs, keras_ldam.CosineDense(5, use_bias=False)(x))
        model.compile("sgd", loss=keras_ldam.LDAM(replicas.COUNTS, gradual=False))
    model.fit(replicas.batches(), epochs=1, verbose=0, shuffle=False)
    for variable in model.non_trainable_variables:
        first, second = (
            part.numpy() for part in mirrored.experimental_local_results(variable.value)
        )
        assert np.isfinite(first).all()
        np.testing.assert_array_equal(first, second)


def test_what_pads_an_empty_share_is_in_no_statistics(mirrored):
    with mirrored.scope():
        inputs = keras.Input((1,))
        norm = keras.layers.BatchNormalization(momentum=0.5)
        model = distribution.ReplicatedModel(inputs, keras.layers.Dense(2)(norm(inputs)))
        model.compile("sgd", keras_ldam.CrossEntropy([5, 4]), **ONE_BY_ONE)
    x, y = np.full((9, 1), 10.0, "float32"), np.array([0] * 5 + [1] * 4)
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    # Halfway to 10 twice on one replica, once on the other, which has nothing of the last batch.
    np.testing.assert_allclose(norm.moving_mean.numpy(), [(7.5 + 5.0) / 2])


def test_each_replica_draws_its_own_noise(mirrored):
    with mirrored.scope():
        inputs = keras.Input((64,))
        dropout = keras.layers.Dropout(0.5, seed=3)
        model = distribution.ReplicatedModel(inputs, keras.layers.Dense(2)(dropout(inputs)))
        model.compile("sgd", keras_ldam.CrossEntropy([8, 8]))
    examples = np.ones((16, 64), "float32"), np.zeros(16, "int32")

    def fitted(*callbacks):
        model.fit(*examples, batch_size=8, verbose=0, callbacks=list(callbacks))
        return [list(state.numpy()) for state in mirrored.experimental_local_results(
            dropout.seed_generator.state.value)]  # fmt: skip

    one, two = fitted()
    assert two == [one[0] + 1, one[1]] and one == [3, 2]
    drawn = mirrored.run(lambda: dropout(tf.ones((4, 64)), training=True))
    one, two = mirrored.experimental_local_results(drawn)
    assert np.any(one.numpy() != two.numpy())
    # However often it is fitted; and what is saved is the first one's.
    assert fitted() == [[3, 5], [4, 5]]
    # Also where another callback begins each epoch with a state, the same on all.
    state = dropout.seed_generator.state
    clock = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: state.assign([7, 0]))
    assert fitted(clock) == [[7, 2], [8, 2]]


def dense_predictions(*, masked=True):
    inputs = keras.Input((5, 3))
    x = keras.layers.Masking()(inputs) if masked else inputs
    head = keras_ldam.CosineDense(
        4, use_bias=False, kernel_initializer=keras.initializers.GlorotUniform(2)
    )
    return inputs, head(x)


def masked_examples():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(6, 5, 3)).astype("float32")
    for row, length in enumerate((5, 4, 3, 2, 1, 1)):
        x[row, length:] = 0.0
    return x, rng.integers(0, 4, size=(6, 5))


@pytest.mark.parametrize("model_class", [distribution.ReplicatedModel, keras.Model])
def test_masks_and_margins_count_on_two_replicas_as_on_one(model_class, mirrored):
    x, y = masked_examples()

    def evaluated(strategy, model_class):
        with strategy.scope() if strategy else contextlib.nullcontext():
            model = model_class(*dense_predictions())
            metrics = [keras_ldam.ClassErrors([9, 8, 7, 6]), keras_ldam.ClassMargins(4)]
            loss = keras_ldam.LDAM([9, 8, 7, 6], gradual=False)
            how = {"jit_compile": False} if strategy else ONE_BY_ONE
            model.compile("sgd", loss, weighted_metrics=metrics, **how)
        return model, model.evaluate(x, y, batch_size=6, verbose=0, return_dict=True)

    (one, expected), (two, found) = evaluated(None, keras.Model), evaluated(mirrored, model_class)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name
    if model_class is distribution.ReplicatedModel:
        for model in (one, two):
            model.fit(x, y, batch_size=6, verbose=0, shuffle=False)
        np.testing.assert_allclose(two.get_weights()[0], one.get_weights()[0], atol=1e-5)


def test_masks_of_several_outputs_count_on_two_replicas_as_on_one(mirrored):
    x, y = masked_examples()

    def evaluated(strategy, model_class):
        with strategy.scope() if strategy else contextlib.nullcontext():
            inputs, scores = dense_predictions()
            a = keras.layers.Activation("linear", name="a")(scores)
            b = keras.layers.Activation(lambda x: -x, name="b")(scores)
            model = model_class(inputs, {"a": a, "b": b})
            model.compile(
                "sgd",
                {
                    "a": keras_ldam.LDAM([9, 8, 7, 6], gradual=False),
                    "b": keras_ldam.LDAM([9, 8, 7, 6], gradual=False),
                },
                metrics={"a": keras_ldam.ClassErrors([9, 8, 7, 6])},
                **({"jit_compile": False} if strategy else ONE_BY_ONE),
            )
        return model.evaluate(x, {"a": y, "b": y}, batch_size=6, verbose=0, return_dict=True)

    expected = evaluated(None, keras.Model)["error"]
    assert evaluated(mirrored, distribution.ReplicatedModel)["error"] == pytest.approx(expected)


def test_losses_of_keras_take_dense_predictions(mirrored):
    x, y = masked_examples()
    x, y = x[:5], y[:5]  # The last step has one example only.
    labels = {
        "SparseCategoricalCrossentropy": y,
        "MeanSquaredError": np.eye(4, dtype="float32")[y],
        "CTC": np.maximum(y[:, :2], 1),  # One value for an example, not for each step.
    }
    reductions = ("sum_over_batch_size", "mean_with_sample_weight")
    # Each with a head of its own, in one network: what is traced once serves all.
    names = {
        f"{loss}-{reduction}": (loss, reduction) for loss in labels for reduction in reductions
    }

    def trained(strategy, model_class):
        with strategy.scope() if strategy else contextlib.nullcontext():
            inputs = keras.Input((5, 3))
            outputs = {
                name: keras_ldam.CosineDense(
                    4,
                    use_bias=False,
                    kernel_initializer=keras.initializers.GlorotUniform(2),
                    name=name,
                )(inputs)
                for name in names
            }
            model = model_class(inputs, outputs)
            model.compile(
                "sgd",
                {
                    name: getattr(keras.losses, loss)(reduction=reduction)
                    for name, (loss, reduction) in names.items()
                },
                **({"jit_compile": False} if strategy else ONE_BY_ONE),
            )
        targets = {name: labels[loss] for name, (loss, _) in names.items()}
        history = model.fit(x, targets, batch_size=4, epochs=2, verbose=0, shuffle=False).history
        return history["loss"], {name: model.get_layer(name).get_weights()[0] for name in names}

    found, expected = trained(mirrored, distribution.ReplicatedModel), trained(None, keras.Model)
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for name in names:
        np.testing.assert_allclose(found[1][name], expected[1][name], atol=1e-6, err_msg=name)


def test_validation_is_by_the_statistics_that_the_epoch_ends_with(mirrored):
    with mirrored.scope():
        inputs = keras.Input((6,))
        x = keras.layers.BatchNormalization(momentum=0.1)(inputs)
        model = distribution.ReplicatedModel(inputs, keras.layers.Dense(5)(x))
        model.compile("sgd", keras_ldam.CrossEntropy(replicas.COUNTS))
    x, y = replicas.examples()
    x[np.arange(len(x)) % 8 < 4] *= 30.0  # The replicas see different things.
    history = model.fit(x, y, batch_size=8, validation_data=(x, y), verbose=0, shuffle=False)
    again = model.evaluate(x, y, batch_size=8, verbose=0)
    assert history.history["val_loss"][-1] == pytest.approx(again, rel=1e-5)


def test_a_saved_model_comes_back_with_its_step_within_the_scope_and_outside(mirrored, tmp_path):
    with mirrored.scope():
        inputs = keras.Input((6,))
        model = distribution.ReplicatedModel(
            inputs, keras_ldam.CosineDense(5, use_bias=False)(inputs)
        )
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        model.compile(optimizer, keras_ldam.LDAM(replicas.COUNTS, gradual=False), jit_compile=True)
    model.fit(replicas.batches(), epochs=1, verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    loaded = []
    for scope in (mirrored.scope(), contextlib.nullcontext()):
        with scope:
            loaded.append(keras.models.load_model(tmp_path / "model.keras"))
    for each in (model, *loaded):  # Its optimizer too goes on where it was.
        each.fit(replicas.batches(), epochs=1, verbose=0, shuffle=False)
    for again in loaded:
        assert type(again) is distribution.ReplicatedModel and again.pass_is_compiled
        np.testing.assert_allclose(again.get_weights(), model.get_weights(), atol=1e-5)


def test_a_model_that_is_not_compiled_is_saved_too(tmp_path):
    model = distribution.ReplicatedModel(inputs := keras.Input((6,)), keras.layers.Dense(5)(inputs))
    model.save(tmp_path / "model.keras")
    assert not keras.models.load_model(tmp_path / "model.keras").compiled


def test_a_model_of_ones_own_evaluates_on_two_replicas_as_on_one(mirrored):
    class Own(distribution.ReplicatedStep, keras.Model):
        def __init__(self):
            super().__init__()
            initializer = keras.initializers.GlorotUniform(1)
            self.head = keras_ldam.CosineDense(5, kernel_initializer=initializer)

        def call(self, inputs):
            return self.head(inputs)

    losses = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            model = Own()
            model.compile(
                "sgd", loss=keras_ldam.LDAM(replicas.COUNTS, gradual=False), metrics=["accuracy"]
            )
        losses.append(model.evaluate(replicas.batches(), verbose=0))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_an_epoch_over_two_devices_ends_as_soon_as_its_data_do(mirrored):
    # That these end it is tested with `keras_internals.without_autotuning`.
    with mirrored.scope():
        model = distribution.ReplicatedModel(
            inputs := keras.Input((6,)), keras_ldam.CosineDense(5, use_bias=False)(inputs)
        )
        model.compile("sgd", keras_ldam.LDAM(replicas.COUNTS, gradual=False))
    made = []

    class Seen(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            made.append(keras_internals._untuned.get())

    model.fit(replicas.batches(), verbose=0, shuffle=False, callbacks=Seen())
    assert made and all(made)
    assert not keras_internals._untuned.get()


def test_loss_scaling_over_several_replicas_is_refused(mirrored):
    with mirrored.scope():
        inputs = keras.Input((6,))
        model = distribution.ReplicatedModel(inputs, keras.layers.Dense(5)(inputs))
    with pytest.raises(ValueError, match="use mixed_bfloat16"):
        model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), loss="mse")


def test_a_sum_over_the_batch_is_refused(mirrored):
    model = distribution.ReplicatedModel(inputs := keras.Input((6,)), keras.layers.Dense(5)(inputs))
    with pytest.raises(ValueError, match=r"reduced to a mean .* Received: reduction='sum'"):
        model.compile("sgd", loss=keras_ldam.LDAM(replicas.COUNTS, gradual=False, reduction="sum"))
    model = distribution.ReplicatedModel(inputs, {"a": model.output, "b": model.output})
    with pytest.raises(ValueError, match="Received: reduction='sum'"):
        model.compile(
            "sgd",
            {"a": "mse", "b": keras_ldam.LDAM(replicas.COUNTS, gradual=False, reduction="sum")},
        )


def test_one_callback_needs_no_list():
    model = distribution.ReplicatedModel(inputs := keras.Input((6,)), keras.layers.Dense(5)(inputs))
    model.compile("sgd", loss=keras_ldam.CrossEntropy(replicas.COUNTS))
    x, y = np.ones((4, 6), np.float32), np.arange(4)
    history = model.fit(x, y, callbacks=keras_ldam.DRW(0, verbose=0), verbose=0).history
    assert history["reweighted"] == [1.0]


# ----------------------------------------------------------------------------- wrong settings

CLUSTER = {"worker": ["localhost:1", "localhost:2"]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is not set"),
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        (json.dumps({"cluster": CLUSTER}), "KeyError: 'task'"),
        (
            json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": 2}}),
            "unknown worker 2",
        ),
        (json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": "0"}}), "TypeError"),
        (json.dumps({"cluster": CLUSTER, "task": {"type": "chief", "index": 0}}), "'chief'"),
        (json.dumps({"cluster": {"ps": []}, "task": {"type": "ps", "index": 0}}), "job 'ps'"),
        (
            json.dumps({"cluster": {"worker": ["here"]}, "task": {"type": "worker", "index": 0}}),
            "'here' is not host:port",
        ),
    ],
)
def test_a_malformed_cluster_gets_a_sentence(text, reason, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(
        ValueError, match="Strategy multiworker needs TF_CONFIG of the form"
    ) as told:
        distribution.make_strategy("multiworker")
    assert reason in str(told.value)
    assert len(str(told.value).splitlines()) == 1


def test_the_chief_stands_before_the_workers(monkeypatch):
    jobs = {"worker": ["a:1", "b:2"], "chief": ["c:3"]}
    for kind, index, place in (("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)):
        task = {"type": kind, "index": index}
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": jobs, "task": task}))
        cluster = distribution.Cluster.from_environment()
        assert (cluster.index, cluster.address) == (place, ("c:3", "a:1", "b:2")[place])
        assert cluster.is_chief == (kind == "chief")


@pytest.mark.parametrize(
    ("name", "replicas", "message"),
    [
        ("mirrored", 5, r"at most the 2 \(CPU\) of this machine.* Received: replicas=5"),
        ("mirrored", 1, "at least 2 devices.* cores divides a CPU"),
        ("cores", 1, "at least 2 replicas, and at most one per core"),
        ("cores", 5000, "of the [0-9]+ available. Received: replicas=5000"),
        ("cloud", 0, "`name` must be one of none, cores, mirrored, multiworker. Received: 'cloud'"),
    ],
)
def test_devices_that_do_not_exist_get_a_sentence(name, replicas, message):
    with pytest.raises(ValueError, match=message):
        distribution.make_strategy(name, replicas=replicas)


@pytest.mark.parametrize("index", [0, 1])
def test_a_machine_that_does_not_come_is_not_waited_for_for_ever(index):
    addresses = tuple(f"localhost:{port}" for port in replicas.free_ports(2))
    cluster = distribution.Cluster(addresses, index)
    begun = time.monotonic()
    with pytest.raises(distribution.WorkerLostError, match=addresses[1 - index]):
        meet(cluster, 1)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("said", [b"7", b"0", b"hello", b""])
def test_a_caller_that_is_no_worker_does_not_stand_in_for_one(said):
    addresses = tuple(f"localhost:{port}" for port in replicas.free_ports(2))
    host, port = addresses[0].split(":")
    failed = []

    def chief():
        try:
            meet(distribution.Cluster(addresses, 0), 1)
        except distribution.WorkerLostError as error:
            failed.append(str(error))

    thread = threading.Thread(target=chief)
    thread.start()
    with contextlib.ExitStack() as stranger:
        while thread.is_alive():
            try:
                caller = socket.create_connection((host, int(port)))
            except ConnectionRefusedError:  # It does not listen yet.
                time.sleep(0.01)
            else:
                stranger.enter_context(caller).sendall(said)
                break
        else:
            pytest.fail("nobody listened")
        thread.join()
    assert failed and addresses[1] in failed[0]


def test_an_address_that_is_taken_gets_a_sentence():
    with socket.create_server(("", 0)) as taken:
        address = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"cannot listen at {address}"):
            meet(distribution.Cluster((address, "localhost:1"), 0), 1)


# ----------------------------------------------------------------------------- two machines


def test_two_machines_train_as_one_device(tmp_path, on_one_device):
    outputs = [str(tmp_path / f"{i}.npz") for i in range(2)]
    arguments = [("multiworker", output) for output in outputs]
    processes = replicas.start_cluster(replicas.train_and_save, arguments, tmp_path)
    try:
        codes = [replicas.ended(process) for process in processes]
    finally:
        replicas.end(processes)
    assert codes == [0, 0], (tmp_path / "0.txt").read_text()[-2000:]
    for index in range(2):
        with np.load(tmp_path / f"{index}.npz") as found:
            weights = [found[f"arr_{i}"] for i in range(len(on_one_device[1]))]
            assert_same(({"loss": found["loss"]}, weights), on_one_device)


def test_eight_devices_train_as_one(tmp_path, on_one_device):
    # Class weights from the second epoch on; most devices never see class 4 in a step, and in the
    # last one five have no example.
    output, told = tmp_path / "eight.npz", tmp_path / "told.txt"
    process = replicas.start(replicas.train_on_eight, (str(output),), told)
    try:
        assert replicas.ended(process) == 0, told.read_text()[-2000:]
    finally:
        replicas.end([process])
    with np.load(output) as found:
        assert len(set(found["devices"])) == 8
        weights = [found[f"arr_{i}"] for i in range(len(on_one_device[1]))]
        assert_same(({"loss": found["loss"]}, weights), on_one_device)


@pytest.mark.skipif(hardware.cores() < 2, reason="needs two cores")
def test_replicas_on_parts_of_the_cores_train_as_one_device(tmp_path, on_one_device):
    unset = dict.fromkeys(name for name in os.environ if name.startswith("TF_NUM_"))
    arguments = ("cores", str(tmp_path / "cores.npz"))
    process = replicas.start(replicas.train_and_save, arguments, tmp_path / "told.txt", **unset)
    try:
        assert replicas.ended(process) == 0, (tmp_path / "told.txt").read_text()[-2000:]
    finally:
        replicas.end([process])
    with np.load(tmp_path / "cores.npz") as found:
        assert len(set(found["devices"])) == 2
        assert list(found["threads"]) == [2, hardware.cores() // 2]
        weights = [found[f"arr_{i}"] for i in range(len(on_one_device[1]))]
        assert_same(({"loss": found["loss"]}, weights), on_one_device)


def test_cores_can_only_be_divided_once(mirrored, monkeypatch):
    monkeypatch.setattr(hardware, "cores", lambda: 4)
    assert distribution.make_strategy("cores") is mirrored  # This process has two already.
    with pytest.raises(ValueError, match="before TensorFlow computes anything"):
        distribution.make_strategy("cores", replicas=3)
    with pytest.raises(ValueError, match="of the 4 available"):
        distribution.make_strategy("cores", replicas=5)


def test_cores_are_not_divided_beside_an_accelerator(monkeypatch):
    monkeypatch.setattr(hardware, "accelerators", lambda: ["Card A"])
    with pytest.raises(ValueError, match="this one has Card A; choose none or mirrored"):
        distribution.make_strategy("cores")


@pytest.mark.parametrize("reduction", [None, "none"])
def test_a_loss_that_is_not_reduced_is_refused(reduction, mirrored):
    model = distribution.ReplicatedModel(inputs := keras.Input((6,)), keras.layers.Dense(5)(inputs))
    with pytest.raises(ValueError, match="reduced to a mean"):
        model.compile(
            "sgd", loss=keras_ldam.LDAM(replicas.COUNTS, gradual=False, reduction=reduction)
        )


def test_a_pass_with_a_layer_that_xla_does_not_know_is_not_compiled(monkeypatch):
    monkeypatch.setattr(hardware, "accelerators", lambda: ["GPU"])
    for supports, compiled in ((True, True), (False, False)):
        layer = keras.layers.Dense(5)
        layer.supports_jit = supports
        model = distribution.ReplicatedModel(inputs := keras.Input((6,)), layer(inputs))
        model.compile("sgd", loss=keras_ldam.LDAM(replicas.COUNTS, gradual=False))
        assert model.pass_is_compiled is compiled


@pytest.mark.parametrize(
    "loss",
    [
        lambda: keras_ldam.CrossEntropy(replicas.COUNTS),
        lambda: [keras_ldam.CrossEntropy(replicas.COUNTS)],
        lambda: keras_ldam.CrossEntropy(
            replicas.COUNTS, reduction="mean_over_data", ignore_class=0
        ),
        lambda: keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
    ],
)
@pytest.mark.parametrize("plain", [False, True])
def test_weights_of_examples_count_on_two_replicas_as_on_one(plain, loss, mirrored):
    if plain and loss().__class__.__module__.startswith("keras.src"):
        pytest.skip("Keras' own loss in Keras' own step")
    x, y = replicas.examples()
    weights = np.random.default_rng(3).uniform(0.0, 5.0, len(y)).astype("float32")
    batches = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(replicas.BATCH)

    def trained(strategy, model_class):
        with strategy.scope() if strategy else tf.name_scope("one"):
            model = model_class(inputs := keras.Input((6,)), keras.layers.Dense(
                5, kernel_initializer=keras.initializers.GlorotUniform(1))(inputs))  # fmt: skip
            how = {"jit_compile": False} if strategy else ONE_BY_ONE
            model.compile(keras.optimizers.SGD(0.1), loss=loss(), **how)
        history = model.fit(batches, epochs=1, verbose=0, shuffle=False).history
        return [*model.get_weights(), history["loss"][0], model.evaluate(batches, verbose=0)]

    ours = keras.Model if plain else distribution.ReplicatedModel
    found, expected = trained(mirrored, ours), trained(None, keras.Model)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
