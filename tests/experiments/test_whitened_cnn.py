"""The small network of the recipe fast: its first convolution, its start, and its size."""

import keras
import numpy as np
import pytest

from keras_ldam import CosineDense
from keras_ldam.experiments import recipes
from keras_ldam.experiments.models.whitened_cnn import whitened_cnn, whitening


@pytest.fixture(scope="module")
def images():
    """Smooth images, in whose patches most pixels say the same."""
    coarse = np.random.default_rng(0).integers(0, 256, (60, 6, 6, 3))
    noise = np.random.default_rng(1).integers(0, 9, (60, 24, 24, 3))
    smooth = coarse.repeat(4, axis=1).repeat(4, axis=2)
    return np.clip(smooth + noise, 0, 255)[:, :16, :16].astype("uint8")


@pytest.fixture(scope="module")
def model(images):
    return whitened_cnn(head=CosineDense(3, use_bias=False), images=images, width=8)


def test_responses_to_patches_are_uncorrelated_and_of_size_1_and_each_has_its_negative(images):
    normalized = (images - images.mean((0, 1, 2))) / images.std((0, 1, 2))
    kernel = whitening(normalized, smallest=0.0)
    assert kernel.shape == (2, 2, 3, 24)
    np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])
    windows = [
        normalized[:, top : top + 2, left : left + 2]
        for top in range(0, 15, 3)
        for left in range(0, 15, 3)
    ]
    responses = np.concatenate(windows).reshape(-1, 12) @ kernel[..., :12].reshape(12, 12)
    np.testing.assert_allclose(responses.T @ responses / len(responses), np.eye(12), atol=1e-3)


def test_images_of_one_color_have_finite_filters():
    flat = np.full((4, 16, 16, 1), 7, "uint8")
    built = whitened_cnn(head=CosineDense(2), images=flat, width=8)
    assert np.isfinite(built.get_layer("whitening").kernel.numpy()).all()
    assert np.isfinite(np.asarray(built(flat))).all()


def test_convolutions_begin_by_passing_their_input_on_and_the_first_one_stays(model):
    second = model.get_layer("block1_second_convolution")
    x = np.random.default_rng(0).normal(size=(1, 5, 5, 8)).astype("float32")
    np.testing.assert_allclose(second(x), x, rtol=1e-6)
    wider = model.get_layer("block2_first_convolution")
    np.testing.assert_allclose(wider(x)[..., :8], x, rtol=1e-6)
    assert np.abs(np.asarray(wider(x)[..., 8:])).max() > 0.01
    first = model.get_layer("whitening")
    assert [weight.name for weight in first.trainable_variables] == ["bias"]
    first.trainable = False
    assert not first.trainable_variables
    first.trainable = True
    assert [weight.name for weight in first.trainable_variables] == ["bias"]


def test_pixels_are_normalized_by_the_images(model, images):
    normalized = model.get_layer("normalization")(images.astype("float32"))
    np.testing.assert_allclose(np.mean(normalized, (0, 1, 2)), 0, atol=1e-3)
    np.testing.assert_allclose(np.std(normalized, (0, 1, 2)), 1, atol=1e-3)


def test_features_are_a_maximum_and_the_mean_over_an_image_and_its_mirror_image(model, images):
    names = ("block3_second_relu", "features")
    inner = keras.Model(model.input, [model.get_layer(name).output for name in names])
    maps, features = map(keras.ops.convert_to_numpy, inner(images))
    assert len(maps) == 2 * len(features) == 120
    np.testing.assert_allclose(maps.max((1, 2)).reshape(2, 60, -1).mean(0), features, rtol=1e-6)
    scores = model.predict(images, verbose=0)
    np.testing.assert_allclose(model.predict(images[:, :, ::-1], verbose=0), scores, atol=1e-5)
    assert len(model(images, training=True)) == 60


def test_it_is_saved_and_loaded_with_its_filters(model, images, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        loaded.predict(images, verbose=0), model.predict(images, verbose=0)
    )
    assert [w.name for w in loaded.get_layer("whitening").trainable_variables] == ["bias"]


def test_an_image_of_cifar_takes_20_million_multiplications():
    pixels = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3)).astype("uint8")
    built = whitened_cnn(head=CosineDense(10), images=pixels)
    convolutions = [layer for layer in built.layers if isinstance(layer, keras.layers.Conv2D)]
    taken = sum(
        np.prod(layer.output.shape[1:3]) * np.prod(layer.kernel.shape) for layer in convolutions
    )
    assert round(taken / 1e6) == 20


def test_images_that_are_too_small_are_refused():
    small = np.zeros((4, 15, 40, 1), "uint8")
    with pytest.raises(ValueError, match=r"at least 16x16 pixels. Received: 15x40"):
        whitened_cnn(head=CosineDense(2), images=small)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_the_recipe_starts_the_weights_in_the_last_fifth(dataset):
    config = recipes.load_recipe(dataset, "ldam_drw", "fast").resolve()
    assert config.network == "whitened_cnn"
    assert config.start_epoch == round(0.8 * config.epochs)
    assert config.run_name == f"{dataset}-longtail-100-ldam_drw-fast-0"
