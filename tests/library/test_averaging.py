"""Statistics of batch normalization for weights that were averaged, against NumPy."""

import keras
import numpy as np
import pytest

from keras_ldam import estimate_batch_norm

X = np.random.default_rng(0).normal(3.0, 2.0, (70, 4)).astype("float32")
SHUFFLED = X[np.random.default_rng(0).permutation(70)]  # As arrays are read.


def two_layers():
    keras.utils.set_random_seed(2)
    layers = [keras.layers.BatchNormalization(), keras.layers.Dense(3, "relu")]
    return keras.Sequential([keras.Input((4,)), *layers, keras.layers.BatchNormalization()])


def expected(model, batches):
    """Means over batches of each batch's mean and variance, layer after layer."""
    kernel, bias = (w.astype("float64") for w in model.layers[1].get_weights())
    found = []
    for x in batches:
        normalized = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3)
        hidden = np.maximum(normalized @ kernel + bias, 0)
        found.append([x.mean(0), x.var(0), hidden.mean(0), hidden.var(0)])
    return [np.mean(each, axis=0) for each in zip(*found, strict=True)]


def statistics(model):
    layers = [model.layers[0], model.layers[2]]
    return [np.array(v) for each in layers for v in (each.moving_mean, each.moving_variance)]


def assert_close(found, wanted):
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


class Endless(keras.utils.PyDataset):
    @property
    def num_batches(self):
        return None


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return X[index * 20 : (index + 1) * 20], np.zeros(20)


def test_they_are_the_means_over_the_batches_and_nothing_else_changes():
    model = two_layers()
    before = [np.array(v) for v in model.trainable_variables]
    estimate_batch_norm(model, (X, np.zeros(70)), batch_size=30)
    assert_close(statistics(model), expected(model, [SHUFFLED[:30], SHUFFLED[30:60]]))
    for value, variable in zip(before, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(value, variable)
    assert [model.layers[i].momentum for i in (0, 2)] == [0.99, 0.99]
    estimate_batch_norm(model, Batches(), batches=2)
    assert_close(statistics(model), expected(model, [X[:20], X[20:40]]))


def test_neither_the_order_of_arrays_nor_a_short_batch_matters():
    # Sorted by class, and one example more than whole batches have.
    labels = np.repeat([0, 1, 2], [1280, 640, 129])
    x = (4 * labels + np.random.default_rng(0).normal(size=len(labels)))[:, None].astype("float32")
    model = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization()])
    for data in (x, [x[::2], x[1::2][:1023], x[-1:]]):
        estimate_batch_norm(model, data)
        mean, variance = (float(v[0]) for v in model.non_trainable_variables[:2])
        assert mean == pytest.approx(x.mean(), abs=0.03)
        assert variance == pytest.approx(x.var(), rel=0.03)


def test_tensors_by_name_are_arrays():
    inputs = {name: keras.Input((4,), name=name) for name in ("a", "b")}
    both = keras.layers.Concatenate()(list(inputs.values()))
    model = keras.Model(inputs, keras.layers.BatchNormalization()(both))
    estimate_batch_norm(model, {name: keras.ops.convert_to_tensor(X) for name in inputs})
    mean = np.array(model.layers[-1].moving_mean)
    np.testing.assert_allclose(mean, np.tile(X.mean(0), 2), rtol=1e-5)


def test_inputs_may_be_a_list_beside_labels():
    one, two = keras.Input((2,)), keras.Input((2,))
    joined = keras.layers.Concatenate()([one, two])
    model = keras.Model([one, two], keras.layers.BatchNormalization()(joined))
    estimate_batch_norm(model, ([X[:, :2], X[:, 2:]], np.zeros(70)), batch_size=70)
    layer = model.layers[-1]
    assert_close([np.array(layer.moving_mean), np.array(layer.moving_variance)],
                 [X.mean(0), X.var(0)])  # fmt: skip


def test_statistics_that_are_no_numbers_are_replaced():
    model, broken = two_layers(), two_layers()
    broken.layers[0].moving_mean.assign(np.full(4, np.nan))
    broken.layers[2].moving_variance.assign(np.full(3, np.inf))
    for each in (model, broken):
        estimate_batch_norm(each, X, batch_size=35)
    assert_close(statistics(broken), statistics(model))


def test_a_layer_that_is_not_called_keeps_its_statistics():
    class WithBranch(keras.Model):
        def __init__(self):
            super().__init__()
            self.norm, self.aside = (keras.layers.BatchNormalization() for _ in range(2))
            self.aside.build((None, 4))

        def call(self, x, training=False):
            return self.norm(x, training=training)

    model = WithBranch()
    model(X)
    model.aside.moving_mean.assign(np.full(4, 3.0))
    estimate_batch_norm(model, X, batch_size=70)
    assert_close([np.array(model.norm.moving_mean)], [X.mean(0)])
    assert_close([np.array(model.aside.moving_mean)], [np.full(4, 3.0)])


def test_no_more_batches_are_read_than_are_used():
    read = []

    def batches():
        while True:
            read.append(1)
            yield np.ones((4, 3), "float32")

    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
    estimate_batch_norm(model, batches(), batches=2)
    assert len(read) == 2


def test_frozen_layers_keep_theirs_and_a_model_of_these_alone_is_refused():
    model = two_layers()
    model.layers[0].trainable = False
    estimate_batch_norm(model, [(X, None)])
    np.testing.assert_array_equal(statistics(model)[0], np.zeros(4))
    assert statistics(model)[2].any()
    model.layers[2].trainable = False
    with pytest.raises(ValueError, match="must have a layer of batch normalization"):
        estimate_batch_norm(model, X)


@pytest.mark.parametrize(
    ("data", "changes", "message"),
    [
        (X, {"batches": 0}, "`batches` must be a whole number of at least 1"),
        (X, {"batch_size": 1.5}, "`batch_size` must be a whole number"),
        ([], {}, "`data` must have at least one batch"),
        (X[:0], {}, "`data` must have at least one batch"),
        ({}, {}, "`data` must have at least one batch"),
        ((), {}, "`data` must have at least one batch"),
        (5, {}, "must be arrays, or an iterable of batches. Received: 5"),
        ({"a": X, "b": X[1:]}, {}, "as many examples in each array"),
        ([X, np.full_like(X, np.nan)], {}, "must be finite"),
        (Endless(), {}, "`data` must end; or pass `batches`"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(data, changes, message):
    model = two_layers()
    before = statistics(model)
    with pytest.raises(ValueError, match=message):
        estimate_batch_norm(model, data, **changes)
    assert_close(statistics(model), before)


def test_an_error_halfway_changes_nothing():
    def breaks_off():
        yield X
        raise OSError("the disk is gone")

    model = two_layers()
    before = statistics(model)
    with pytest.raises(OSError, match="the disk is gone"):
        estimate_batch_norm(model, breaks_off())
    assert_close(statistics(model), before)
    assert [model.layers[i].momentum for i in (0, 2)] == [0.99, 0.99]


class Foreign:
    """A tensor of another backend, as those of a `tf.data.Dataset` are."""

    def __init__(self, x):
        self._x = x

    def __array__(self, dtype=None, copy=None):
        return self._x


def test_tensors_of_tensorflow_are_taken_on_every_backend():
    if keras.backend.backend() == "tensorflow":
        pytest.skip("they are its own")
    model = two_layers()
    estimate_batch_norm(model, [(Foreign(X[:30]), None), (Foreign(X[30:60]), None)])
    assert_close(statistics(model), expected(model, [X[:30], X[30:60]]))


def test_rows_of_a_tensor_are_no_batches():
    model = two_layers()
    estimate_batch_norm(model, keras.ops.convert_to_tensor(X), batch_size=30)
    assert_close(statistics(model), expected(model, [SHUFFLED[:30], SHUFFLED[30:60]]))


@pytest.mark.parametrize("model", [keras.Sequential([keras.layers.BatchNormalization()]), None])
def test_a_model_that_is_not_built_is_refused(model):
    with pytest.raises(ValueError, match="`model` must be a built Keras model"):
        estimate_batch_norm(model, X)
