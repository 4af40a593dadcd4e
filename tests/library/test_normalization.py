"""Tests of FusedBatchNormalization against NumPy and against Keras' own layer."""

import inspect

import keras
import numpy as np
import pytest

from keras_ldam.layers import FusedBatchNormalization

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"


def images(seed=0, batch=8, dtype="float32"):
    return np.random.default_rng(seed).normal(3.0, 2.0, (batch, 4, 4, 6)).astype(dtype)


def with_random_weights(layer):
    if not layer.built:
        layer.build((None, 4, 4, 6))
    rng = np.random.default_rng(1)
    layer.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in layer.weights])
    return layer


def test_training_normalises_with_the_biased_and_remembers_the_unbiased_variance():
    layer = FusedBatchNormalization(momentum=0.9, epsilon=1e-5)
    x = images()
    outputs = np.array(layer(x, training=True))
    flat = x.reshape(-1, 6).astype("float64")
    expected = (x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    np.testing.assert_allclose(layer.moving_mean, 0.1 * flat.mean(0), rtol=1e-5)
    remembered = flat.var(0, ddof=1 if ON_TENSORFLOW else 0)
    np.testing.assert_allclose(layer.moving_variance, 0.9 + 0.1 * remembered, rtol=1e-5)


def test_inference_normalises_with_the_moving_statistics_and_leaves_them():
    layer = with_random_weights(FusedBatchNormalization(epsilon=1e-5))
    before = layer.get_weights()
    gamma, beta, mean, variance = before
    outputs = layer(images(), training=False)
    expected = (images() - mean) / np.sqrt(variance + 1e-5) * gamma + beta
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}])
@pytest.mark.parametrize("training", [True, False])
def test_it_agrees_with_keras_own_layer_on_the_same_weights(options, training):
    fused = with_random_weights(FusedBatchNormalization(**options))
    reference = keras.layers.BatchNormalization(**options)
    reference.build((None, 4, 4, 6))
    reference.set_weights(fused.get_weights())
    np.testing.assert_allclose(
        fused(images(), training=training),
        reference(images(), training=training),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.skipif(not ON_TENSORFLOW, reason="gradients are taken with TensorFlow's tape")
@pytest.mark.parametrize("training", [True, False])
def test_gradients_agree_with_those_of_keras_own_layer(training):
    import tensorflow as tf

    fused = with_random_weights(FusedBatchNormalization())
    reference = keras.layers.BatchNormalization()
    reference.build((None, 4, 4, 6))
    reference.set_weights(fused.get_weights())
    x, target = tf.constant(images()), tf.constant(images(seed=2))
    gradients = []
    for layer in (fused, reference):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(target * layer(x, training=training))
        sources = [x, *(weight.value for weight in layer.trainable_weights)]
        gradients.append(tape.gradient(loss, sources))
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_images_have_statistics_in_float32(policy):
    layer = FusedBatchNormalization(momentum=0.0, dtype=policy)
    # A mean far above the deviation: with squares in half precision no variance would be left.
    x = (64.0 + images()).astype("float32")
    rounded = keras.ops.convert_to_numpy(
        keras.ops.cast(keras.ops.cast(x, layer.compute_dtype), "float32")
    ).reshape(-1, 6)
    outputs = layer(x, training=True)
    assert keras.backend.standardize_dtype(outputs.dtype) == layer.compute_dtype
    assert {weight.dtype for weight in layer.weights} == {"float32"}
    np.testing.assert_allclose(layer.moving_mean, rounded.mean(0), rtol=1e-5)
    ddof = 1 if ON_TENSORFLOW else 0
    np.testing.assert_allclose(layer.moving_variance, rounded.var(0, ddof=ddof), rtol=1e-3)


def test_a_frozen_layer_uses_and_keeps_its_moving_statistics():
    layer = with_random_weights(FusedBatchNormalization())
    layer.trainable = False
    before = layer.get_weights()
    outputs = layer(images(), training=True)
    np.testing.assert_allclose(outputs, layer(images(), training=False))
    np.testing.assert_array_equal(before[2], layer.get_weights()[2])


def test_weights_can_be_exchanged_with_keras_own_layer():
    fused = with_random_weights(FusedBatchNormalization())
    plain = keras.layers.BatchNormalization()
    plain.build((None, 4, 4, 6))
    plain.set_weights(fused.get_weights())
    assert [weight.name for weight in fused.weights] == [weight.name for weight in plain.weights]
    np.testing.assert_allclose(fused(images()), plain(images()), rtol=1e-4, atol=1e-5)
    same = FusedBatchNormalization.from_config(plain.get_config())
    assert same.get_config() == plain.get_config()


def test_a_saved_model_gives_the_same_outputs(tmp_path):
    model = keras.Sequential([keras.Input((4, 4, 6)), FusedBatchNormalization()])
    with_random_weights(model.layers[0])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[0]) is FusedBatchNormalization
    np.testing.assert_array_equal(loaded(images()), model(images()))


def test_inputs_that_are_not_images_fall_back_on_keras_own_layer():
    for shape, axis in (((8, 6), -1), ((8, 5, 6), -1), ((8, 6, 4, 4), 1)):
        x = np.random.default_rng(0).normal(size=shape).astype("float32")
        outputs = FusedBatchNormalization(axis=axis)(x, training=True)
        expected = keras.layers.BatchNormalization(axis=axis)(x, training=True)
        np.testing.assert_array_equal(outputs, expected)


@pytest.mark.skipif(not ON_TENSORFLOW, reason="on other backends it is Keras' layer always")
@pytest.mark.parametrize(
    "options", [{"renorm": True}, {"synchronized": True}, {"dtype": "float64"}]
)
def test_what_the_operation_cannot_do_is_left_to_keras_own_layer(options):
    known = inspect.signature(keras.layers.BatchNormalization).parameters
    if "renorm" in options and "renorm" not in known:
        pytest.skip("this Keras knows no renorm")
    fused, plain = (
        kind(momentum=0.0, **options)
        for kind in (FusedBatchNormalization, keras.layers.BatchNormalization)
    )
    outputs, expected = (layer(images(), training=True) for layer in (fused, plain))
    assert outputs.dtype == expected.dtype
    np.testing.assert_array_equal(outputs, expected)
    # The operation would have remembered the unbiased variance.
    np.testing.assert_allclose(fused.moving_variance, plain.moving_variance, rtol=1e-6)


def test_what_is_masked_does_not_count():
    mask = np.random.default_rng(0).uniform(size=(8, 4, 4)) < 0.5
    fused, plain = FusedBatchNormalization(), keras.layers.BatchNormalization()
    outputs, expected = (layer(images(), training=True, mask=mask) for layer in (fused, plain))
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
