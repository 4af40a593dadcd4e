"""Tests of ResNet-32 against a NumPy forward pass, and of what surrounds the network."""

import keras
import numpy as np
import pytest

from keras_ldam.experiments import models
from keras_ldam.experiments.datasets import Data, Split
from keras_ldam.experiments.models.resnet32 import PaddedShortcut, kaiming_normal, resnet32
from keras_ldam.experiments.recipes import load_recipe
from keras_ldam.optimizers import MomentumSGD


@pytest.fixture(scope="module")
def model():
    """One model for all tests that do not change it."""
    return resnet32(head=keras.layers.Dense(10, dtype="float32"), seed=0)


def raw_images(batch=2, size=32):
    return np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype="uint8")


def parameters(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


# A NumPy ResNet-32, written from the paper and PyTorch's conventions.


def convolve(x, kernel, strides=1):
    """3x3 convolution with one pixel of padding on each side, as `padding=1` in PyTorch."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.einsum("bhwcij,ijco->bhwo", windows[:, ::strides, ::strides], kernel, optimize=True)


def normalize(x, layer):
    gamma, beta, mean, variance = (np.array(weight.value) for weight in layer.weights)
    return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta


def relu(x):
    return np.maximum(x, 0)


def numpy_features(model, images):
    def unit(x, name, strides=1):
        kernel = np.array(model.get_layer(f"{name}_convolution").kernel.value)
        return normalize(convolve(x, kernel, strides), model.get_layer(f"{name}_normalization"))

    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2023, 0.1994, 0.2010])
    x = relu(unit((images / 255.0 - mean) / std, "stem"))
    for stage, filters in enumerate((16, 32, 64), start=1):
        for block in range(1, 6):
            name, strides = f"stage{stage}_block{block}", 1 + (stage > 1 and block == 1)
            side = (filters - x.shape[-1]) // 2
            shortcut = np.pad(x[:, ::strides, ::strides], ((0, 0),) * 3 + ((side, side),))
            y = unit(relu(unit(x, f"{name}_first", strides)), f"{name}_second")
            x = relu(y + shortcut)
    return x.mean((1, 2))


def test_the_forward_pass_is_that_of_the_numpy_reference():
    model = resnet32(head=keras.layers.Dense(10, dtype="float32"))
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            shapes = [weight.shape for weight in layer.weights]
            layer.set_weights([rng.uniform(0.5, 1.0, shape) for shape in shapes])
    features = keras.Model(model.input, model.get_layer("features").output)
    expected = numpy_features(model, raw_images())
    np.testing.assert_allclose(features(raw_images()), expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(("num_classes", "expected"), [(10, 464_154), (100, 470_004)])
def test_it_has_the_published_number_of_parameters(num_classes, expected):
    assert parameters(resnet32(head=keras.layers.Dense(num_classes))) == expected


def test_no_convolution_has_a_bias_and_there_are_thirty_one_of_them(model):
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert len(convolutions) == 31
    assert not any(layer.use_bias for layer in convolutions)


def test_batch_normalization_has_the_constants_of_pytorch(model):
    layers = [each for each in model.layers if isinstance(each, keras.layers.BatchNormalization)]
    assert {(layer.momentum, layer.epsilon) for layer in layers} == {(0.9, 1e-5)}


def test_kernels_are_normal_with_fan_in_scale_and_not_truncated():
    kernel = np.array(kaiming_normal(0)((3, 3, 64, 64), "float32"))
    deviation = np.sqrt(2 / (9 * 64))
    assert abs(kernel.std() / deviation - 1) < 0.02
    # Keras' own he_normal is cut at two (rescaled: 2.3) standard deviations.
    assert abs(kernel).max() > 3.5 * deviation


def test_kernels_of_one_model_and_of_neighboring_seeds_all_differ(model):
    other = resnet32(head=keras.layers.Dense(10, dtype="float32"), seed=1)
    same = resnet32(head=keras.layers.Dense(10, dtype="float32"), seed=0)

    def kernels(each):
        layers = [layer for layer in each.layers if isinstance(layer, keras.layers.Conv2D)]
        return [np.array(layer.kernel.value) for layer in layers]

    everything = {kernel.tobytes() for each in (model, other) for kernel in kernels(each)}
    assert len(everything) == 2 * 31
    for first, second in zip(kernels(model), kernels(same), strict=True):
        np.testing.assert_array_equal(first, second)


def test_augmentation_is_on_in_training_only(model):
    layer = keras.Model(model.input, model.get_layer("augmentation").output)
    images = raw_images(16)
    np.testing.assert_array_equal(layer(images, training=False), images)
    assert not np.array_equal(layer(images, training=True), images)
    plain = resnet32(head=keras.layers.Dense(10, dtype="float32"), augment=False)
    assert "augmentation" not in [layer.name for layer in plain.layers]


def test_raw_pixels_are_normalized_inside_the_model(model):
    layer = keras.Model(model.input, model.get_layer("normalization").output)
    images = raw_images()
    expected = (images / 255.0 - [0.4914, 0.4822, 0.4465]) / [0.2023, 0.1994, 0.2010]
    np.testing.assert_allclose(layer(images), expected, rtol=1e-4, atol=1e-5)


def test_the_shortcut_keeps_every_second_pixel_between_new_channels_of_zeros():
    for size in (6, 5):
        x = np.random.default_rng(0).normal(size=(2, size, size, 4)).astype("float32")
        outputs = np.array(PaddedShortcut(8)(x))
        np.testing.assert_array_equal(outputs[..., 2:6], x[:, ::2, ::2])
        assert not outputs[..., :2].any() and not outputs[..., 6:].any()
        assert PaddedShortcut(8).compute_output_shape(x.shape) == outputs.shape


def test_under_mixed_precision_features_and_outputs_are_float32():
    head = keras.layers.Dense(10, dtype="float32")
    model = resnet32(head=head, dtype="mixed_bfloat16")
    assert model.get_layer("stage3_block5_relu").compute_dtype == "bfloat16"
    assert model.get_layer("normalization").compute_dtype == "float32"
    assert model.get_layer("features").output.dtype == "float32"
    assert model.output.dtype == "float32"
    assert {weight.dtype for weight in model.trainable_weights} == {"float32"}


def test_a_head_in_half_precision_is_refused():
    with pytest.raises(ValueError, match="`head` must compute in float32"):
        resnet32(head=keras.layers.Dense(10, dtype="mixed_bfloat16"))


@pytest.mark.parametrize("name", ["mean", "std"])
def test_statistics_of_the_wrong_length_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        resnet32(head=keras.layers.Dense(10), **{name: (0.5,)})


def test_a_saved_model_gives_the_same_outputs(model, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(raw_images()), model(raw_images()))


def test_two_steps_of_training_lower_the_loss():
    model = resnet32(head=keras.layers.Dense(2, dtype="float32"), augment=False)
    model.compile(
        MomentumSGD(0.01, momentum=0.9, coupled_weight_decay=2e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=True,  # tracing would take most of the time
    )
    images = raw_images(8)
    labels = np.arange(8) % 2
    losses = [model.train_on_batch(images, labels) for _ in range(3)]
    assert losses[2] < losses[0]


ON_JAX = """
import sys
import keras, numpy as np
from keras_ldam.layers import RandomCropFlip
from keras_ldam.experiments.models.resnet32 import resnet32
from keras_ldam.optimizers import MomentumSGD

assert keras.backend.backend() == "jax" and "tensorflow" not in sys.modules

weight, velocity = np.ones(3), 0.0
variable = keras.Variable(weight)
optimizer = MomentumSGD(0.1, momentum=0.9, coupled_weight_decay=0.1)
for rate in (0.1, 0.1, 0.001):
    optimizer.learning_rate = rate
    optimizer.apply([keras.ops.ones(3)], [variable])
    velocity = 0.9 * velocity + 1 + 0.1 * weight
    weight = weight - rate * velocity
np.testing.assert_allclose(variable, weight, rtol=1e-5)

images = np.arange(1, 28, dtype="uint8").reshape(1, 3, 3, 3).repeat(200, 0)
results = np.array(RandomCropFlip(padding=1, seed=0)(images, training=True))
padded = np.pad(images[0], ((1, 1), (1, 1), (0, 0)))
crops = [padded[i:i + 3, j:j + 3] for i in range(3) for j in range(3)]
allowed = {crop.tobytes() for crop in crops}
allowed |= {np.ascontiguousarray(crop[:, ::-1]).tobytes() for crop in crops}
assert {result.tobytes() for result in results} == allowed

model = keras.saving.load_model(sys.argv[1])
np.save(sys.argv[2], np.array(model(np.load(sys.argv[3]))))
"""


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="compares JAX with this backend")
def test_jax_crops_steps_and_computes_as_this_backend_does(model, on_jax, tmp_path):
    path, outputs, images = (
        str(tmp_path / name) for name in ("model.keras", "outputs.npy", "images.npy")
    )
    # The stem, one block and the shortcut between stages: every kind of layer there is.
    block = model.get_layer("stage1_block1_relu").output
    part = keras.Model(model.input, PaddedShortcut(32)(block))
    part.save(path)
    np.save(images, raw_images())
    result = on_jax(ON_JAX, path, outputs, images)
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(np.load(outputs), part(raw_images()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_logits_start_from_hes_distribution_as_in_the_official_code(dataset):
    images = Split(np.zeros((2, 32, 32, 3), np.uint8), np.arange(2))
    data = Data(dataset, ("a", "b"), train=images, test=images)
    built = models.build(load_recipe(dataset, "erm").resolve(), data)
    last = built.get_layer("logits")
    assert built.name == "resnet32"
    assert last.kernel_initializer.get_config() == kaiming_normal(0).get_config()
    other = models.head(load_recipe("digits", "erm").resolve(), 10)
    assert isinstance(other.kernel_initializer, keras.initializers.GlorotUniform)
