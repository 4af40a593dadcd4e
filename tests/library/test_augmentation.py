"""Tests of RandomCropFlip: what it may return, how often, and when."""

import keras
import numpy as np
import pytest

from keras_ldam.layers import RandomCropFlip
from keras_ldam.sampling import BalancedFiles, EpochClock


def numbered_images(batch, height=6, width=5, channels=3):
    """Images in which every value is different and none is zero."""
    values = np.arange(1, height * width * channels + 1, dtype="uint8")
    return np.broadcast_to(values.reshape(1, height, width, channels), (batch, height, width, 3))


def all_outcomes(image, padding):
    """Maps every possible result to its (top, left, mirrored)."""
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    outcomes = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[top : top + height, left : left + width]
            outcomes[crop.tobytes()] = (top, left, False)
            outcomes[np.ascontiguousarray(crop[:, ::-1]).tobytes()] = (top, left, True)
    return outcomes


def test_every_result_is_a_crop_of_the_zero_padded_image_and_all_are_equally_likely():
    images, padding = numbered_images(9000), 1
    results = np.array(RandomCropFlip(padding=padding, seed=0)(images, training=True))
    outcomes = all_outcomes(images[0], padding)
    drawn = [outcomes[result.tobytes()] for result in results]
    assert len(outcomes) == 18
    _, frequency = np.unique(drawn, axis=0, return_counts=True)
    # 500 of each are expected, with a standard deviation of 22.
    assert len(frequency) == 18 and abs(frequency - 500).max() < 5 * 22


def test_images_of_one_batch_are_changed_independently_and_batches_differ():
    images, layer = numbered_images(64), RandomCropFlip(padding=2, seed=0)
    first, second = (np.array(layer(images, training=True)) for _ in range(2))
    assert len({result.tobytes() for result in first}) > 20
    assert not np.array_equal(first, second)


def test_outside_training_the_images_pass_unchanged():
    images, layer = numbered_images(4), RandomCropFlip(seed=0)
    for training in (None, False):
        np.testing.assert_array_equal(layer(images, training=training), images)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_the_type_of_the_images_is_kept(dtype):
    images = numbered_images(4).astype(dtype)
    result = RandomCropFlip(seed=0)(images, training=True)
    assert keras.backend.standardize_dtype(result.dtype) == dtype


def test_equal_seeds_give_equal_draws():
    images = numbered_images(16)
    first, second = (np.array(RandomCropFlip(seed=3)(images, training=True)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_a_saved_model_continues_with_the_draws_it_would_have_made(tmp_path):
    images = numbered_images(16)
    model = keras.Sequential([keras.Input((6, 5, 3), dtype="uint8"), RandomCropFlip(seed=0)])
    first = np.array(model(images, training=True))
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    expected = np.array(model(images, training=True))
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    fresh = keras.Sequential([keras.Input((6, 5, 3), dtype="uint8"), RandomCropFlip(seed=9)])
    fresh.load_weights(tmp_path / "model.weights.h5")
    assert not np.array_equal(first, expected)
    for resumed in (loaded, fresh):
        np.testing.assert_array_equal(resumed(images, training=True), expected)


def test_batches_of_any_size_are_augmented():
    images = keras.Input((6, 5, 3), dtype="uint8")
    model = keras.Model(images, RandomCropFlip(seed=0)(images))
    assert model.output_shape == (None, 6, 5, 3)
    assert model(numbered_images(3), training=True).shape == (3, 6, 5, 3)
    assert model(numbered_images(1), training=True).shape == (1, 6, 5, 3)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_pixels_keep_their_precision_under_every_policy(policy):
    images = np.array([65535, 0.123456], "float32").reshape(1, 2, 1, 1)
    layer = RandomCropFlip(padding=1, dtype=policy)
    for training in (False, True):
        found = keras.ops.convert_to_numpy(layer(images, training=training))
        assert found.dtype == np.float32 and set(found.ravel()) <= {*images.ravel(), 0.0}
    assert 65535 in keras.ops.convert_to_numpy(layer(images))


@pytest.mark.parametrize("padding", [-1, 1.5])
def test_a_padding_that_is_no_number_of_pixels_is_refused(padding):
    with pytest.raises(ValueError, match="`padding` must be a whole number of at least 0"):
        RandomCropFlip(padding=padding)


def test_padding_is_four_by_default_and_comes_back_from_the_config_with_the_seed():
    assert RandomCropFlip().padding == 4
    layer = RandomCropFlip(padding=2, seed=3)
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    assert (again.padding, again.seed) == (2, 3)


def test_one_image_without_a_batch_is_changed_too():
    image, padding = numbered_images(1)[0], 1
    layer = RandomCropFlip(padding=padding, seed=0)
    outcomes = all_outcomes(image, padding)
    found = {outcomes[np.array(layer(image, training=True)).tobytes()] for _ in range(20)}
    assert len(found) > 5


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.data runs TensorFlow's ops")
def test_it_works_inside_map():
    import tensorflow as tf

    images, layer = numbered_images(3), RandomCropFlip(padding=1, seed=0)
    dataset = tf.data.Dataset.from_tensor_slices(images)
    changed = list(dataset.map(lambda image: layer(image, training=True)))
    outcomes = all_outcomes(images[0], 1)
    assert all(image.numpy().tobytes() in outcomes for image in changed)
    unknown = tf.data.Dataset.from_generator(
        lambda: images, output_signature=tf.TensorSpec([None, None, 3], tf.uint8)
    )
    with pytest.raises(ValueError, match=r"of known size.*Received: shape \(None, None, 3\)"):
        unknown.map(lambda image: layer(image, training=True))


def test_an_epoch_has_its_own_batches_however_many_workers_read():
    if keras.backend.backend() == "torch":
        pytest.skip("not tested on torch")

    class Seen(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            found.append(logs["loss"])

    def losses():
        x = np.arange(40, dtype="float32")
        batches = BalancedFiles([np.repeat([0, 1], 20)], lambda _, rows: x[rows, None],
                                batch_size=4, workers=workers)  # fmt: skip
        model = keras.Sequential([keras.layers.Dense(1, kernel_initializer="ones")])
        model.compile(keras.optimizers.SGD(0.0), loss="mse")
        clock = EpochClock(batches)
        model.fit(batches, initial_epoch=5, epochs=7, shuffle=False, verbose=0,
                  callbacks=[clock, Seen()])  # fmt: skip
        return found

    found, workers = [], 1
    expected = losses()
    found, workers = [], 2
    np.testing.assert_allclose(losses(), expected, rtol=1e-6)
