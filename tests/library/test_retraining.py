"""Second stages: a fresh head, or a factor for each class, over a body that does not move."""

import tracemalloc

import keras
import numpy as np
import pytest

import keras_ldam
from keras_ldam.adjustment import retraining

COUNTS = [160, 40, 10]
LABELS = np.repeat([0, 1, 2], COUNTS)
RANDOM = np.random.default_rng(0)
CENTERS = RANDOM.normal(size=(3, 6)) * 0.9
X = (CENTERS[LABELS] + RANDOM.normal(size=(len(LABELS), 6))).astype("float32")
TEST_LABELS = np.repeat([0, 1, 2], 100)
X_TEST = (CENTERS[TEST_LABELS] + RANDOM.normal(size=(300, 6))).astype("float32")


def body(inputs):
    hidden = keras.layers.Dense(16, activation="relu", name="hidden")(inputs)
    return keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(hidden))


def functional(head, *after):
    inputs = outputs = keras.Input((6,))
    outputs = head(body(outputs))
    for layer in after:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


class Subclassed(keras.Model):
    """Its layers are made in another order than they are called."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.head = keras_ldam.CosineDense(3, scale=16.0)
        self.hidden = keras.layers.Dense(16, activation="relu")
        self.norm = keras.layers.BatchNormalization()

    def call(self, inputs, training=False):
        return self.head(self.norm(self.hidden(inputs), training=training))


@pytest.fixture(scope="module")
def model():
    """A trained model that ends in a softmax."""
    keras.utils.set_random_seed(0)
    trained = functional(keras.layers.Dense(3, activation="softmax", name="head"))
    trained.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    trained.fit(X, LABELS, epochs=10, verbose=0)
    return trained


def predictions(model, x=X_TEST):
    return keras.ops.convert_to_numpy(model(x, training=False))


def recalls(model):
    guesses = predictions(model).argmax(-1)
    return np.array([(guesses[j == TEST_LABELS] == j).mean() for j in range(3)])


def balanced_loss(model):
    """The mean over classes of -log p(label), on the training examples."""
    losses = -np.log(predictions(model, X)[np.arange(len(X)), LABELS])
    return np.mean([losses[j == LABELS].mean() for j in range(3)])


def weights_of(model, *, head="head"):
    """All weights, statistics included, of the body and of the head."""
    of_head = {id(weights) for weights in model.get_layer(head).weights}
    parts = [[], []]
    for weights in model.weights:
        parts[id(weights) in of_head].append(keras.ops.convert_to_numpy(weights))
    return parts


def assert_equal(some, others):
    for one, other in zip(some, others, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def rescaled(model):
    return keras_ldam.rescale_head(model, (X, LABELS))


@pytest.mark.parametrize("stage", ["retrain_head", "rescale_head"])
def test_rare_classes_gain_and_the_body_stays_bit_for_bit(model, rescaled, stage, tmp_path):
    before, given = weights_of(model), predictions(model)
    second = rescaled if stage == "rescale_head" else keras_ldam.retrain_head(model, (X, LABELS))
    assert balanced_loss(second) < 0.98 * balanced_loss(model)
    if stage == "retrain_head":
        assert recalls(second)[2] > recalls(model)[2]
        assert recalls(second).mean() > recalls(model).mean()
    # Statistics of batch normalization are among the weights of the body.
    assert_equal(weights_of(second)[0], before[0])
    assert not np.array_equal(weights_of(second)[1][0], before[1][0])
    # The given model is as it was.
    assert_equal(weights_of(model)[0] + weights_of(model)[1], before[0] + before[1])
    np.testing.assert_array_equal(predictions(model), given)
    # The new one still ends in its softmax, and is saved like any other.
    np.testing.assert_allclose(predictions(second).sum(-1), 1, rtol=1e-5)
    second.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(predictions(loaded), predictions(second))


def test_factors_multiply_class_vectors_and_biases(model, rescaled):
    (kernel, bias), (new_kernel, new_bias) = (weights_of(some)[1] for some in (model, rescaled))
    factors = new_kernel[0] / kernel[0]
    assert np.abs(factors - 1).max() > 0.01
    np.testing.assert_allclose(new_kernel, kernel * factors, rtol=1e-5)
    np.testing.assert_allclose(new_bias, bias * factors, rtol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_factors_are_those_of_scores_alone(activation):
    with pytest.raises(
        ValueError, match=f"or with a softmax. Received: 'head', with '{activation}'"
    ):
        keras_ldam.rescale_head(
            functional(keras.layers.Dense(3, activation, name="head")), (X, LABELS)
        )


def test_a_second_stage_is_decided_by_its_seed(model):
    heads = [
        weights_of(keras_ldam.retrain_head(model, (X, LABELS), epochs=1, seed=seed))[1]
        for seed in (1, 1, 2)
    ]
    assert_equal(heads[0], heads[1])
    assert not np.array_equal(heads[0][0], heads[2][0])


def test_features_are_those_of_inference_computed_once(model):
    class Stored(keras.utils.PyDataset):
        reads = 0

        def __len__(self):
            return 3

        def __getitem__(self, index):
            self.reads += 1
            some = slice(70 * index, 70 * (index + 1))
            return X[some], np.eye(3)[LABELS[some]], np.ones(len(LABELS[some]))

    stored = Stored()
    found = retraining._Features(model, stored, None, 32)
    assert stored.reads == 3 and found.head is model.get_layer("head")
    features = keras.Model(model.inputs[0], model.get_layer("head").input)
    np.testing.assert_allclose(found.values, predictions(features, X), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.targets[0], np.eye(3)[LABELS])
    np.testing.assert_array_equal(found.targets[1], np.ones(len(X)))


def test_a_subclassed_model_with_a_cosine_head_gets_a_fresh_one():
    model = Subclassed()
    model(X[:1])
    second = keras_ldam.retrain_head(model, (X, LABELS))
    assert isinstance(second, Subclassed) and second is not model
    assert recalls(second).min() > 0.5
    assert_equal(
        [second.hidden.get_weights()[0], second.norm.get_weights()[3]],
        [model.hidden.get_weights()[0], model.norm.get_weights()[3]],
    )
    with pytest.raises(ValueError, match="`rescale_head` needs a head `Dense"):
        keras_ldam.rescale_head(model, (X, LABELS))


def test_a_tf_dataset_may_be_given_and_the_model_changed_in_place(model):
    tf = pytest.importorskip("tensorflow")
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    dataset = tf.data.Dataset.from_tensor_slices((X, LABELS)).batch(70)
    assert keras_ldam.retrain_head(copy, dataset, epochs=1, in_place=True) is copy
    again = keras_ldam.retrain_head(model, (X, LABELS), epochs=1)
    for one, other in zip(weights_of(copy)[1], weights_of(again)[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_one_score_for_two_classes_is_retrained_too():
    keras.utils.set_random_seed(2)
    labels = (LABELS == 2).astype("int32")
    model = functional(keras.layers.Dense(1, activation="sigmoid"))
    second = keras_ldam.retrain_head(model, (X, labels))
    right = (predictions(second)[:, 0] > 0.5) == (TEST_LABELS == 2)
    assert right[TEST_LABELS == 2].mean() > 0.6 and right[TEST_LABELS < 2].mean() > 0.6


def test_the_cosine_of_two_classes_is_scaled_like_those_of_more(eagerly):
    labels = (LABELS == 2).astype("int32")
    kernels = []
    for own, arguments in (
        ({}, {"scale": 1.0}),
        ({}, {"scale": 30.0}),
        ({"scale": 30.0}, {}),
    ):
        keras.utils.set_random_seed(3)
        model = functional(keras_ldam.CosineDense(1, name="head", **own))
        keras_ldam.retrain_head(model, (X, labels), epochs=1, in_place=True, **arguments)
        kernels.append(model.get_layer("head").get_weights()[0])
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3
    np.testing.assert_array_equal(kernels[1], kernels[2])


def two_outputs():
    inputs = keras.Input((6,))
    hidden = body(inputs)
    heads = [keras.layers.Dense(k, name=name)(hidden) for k, name in ((3, "kind"), (2, "other"))]
    return keras.Model(inputs, heads)


def test_the_head_of_one_of_several_outputs_is_named():
    model = two_outputs()
    second = keras_ldam.retrain_head(model, (X, LABELS), head="kind", epochs=1)
    assert_equal(second.get_layer("other").get_weights(), model.get_layer("other").get_weights())
    kernels = [some.get_layer("kind").get_weights()[0] for some in (second, model)]
    assert not np.array_equal(*kernels)


def test_each_of_several_outputs_has_the_scale_of_its_own_head():
    inputs = keras.Input((6,))
    hidden = body(inputs)
    heads = {"a": keras_ldam.CosineDense(3, name="a"), "b": keras.layers.Dense(3, name="b")}
    model = keras.Model(inputs, {name: head(hidden) for name, head in heads.items()})
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", {"a": keras_ldam.LDAM(COUNTS), "b": plain})
    alone = keras.Model(inputs, heads["b"](hidden))
    found, expected = (
        keras_ldam.retrain_head(each, (X, LABELS), head="b", epochs=2).get_layer("b").get_weights()
        for each in (model, alone)
    )
    assert_equal(found, expected)


def test_a_frozen_head_is_trained_too():
    def frozen(trainable):
        keras.utils.set_random_seed(1)
        made = functional(keras.layers.Dense(3, name="head"))
        made.trainable = trainable
        return made

    found, expected = (
        keras_ldam.retrain_head(frozen(each), (X, LABELS), epochs=2) for each in (False, True)
    )
    assert_equal(found.get_layer("head").get_weights(), expected.get_layer("head").get_weights())
    assert found.get_layer("head").trainable is False


def with_lora():
    head = keras.layers.Dense(3, name="head")
    made = functional(head)
    head.enable_lora(2)
    return made


@pytest.mark.parametrize(
    "make, arguments, sentence",
    [
        (with_lora, {}, "The head 'head' must not have LoRA. Received: lora_rank=2"),
        (two_outputs, {}, "`head` must name the layer .* Received: a model with several outputs"),
        (two_outputs, {"head": "none"}, "`head` must name .* the layers are .*kind, other"),
        (
            lambda: keras.Sequential([keras.Input((6,)), keras.layers.Activation("relu")]),
            {},
            "`head` must name the layer",
        ),
        (
            lambda: functional(keras.layers.Dense(3), keras.layers.Rescaling(-1.0)),
            {},
            "whose scores are not the output",
        ),
        (
            lambda: keras.Sequential([keras.Input((6, 1)), keras.layers.Dense(3)]),
            {"data": (X[..., None], LABELS)},
            "one row of features for each example",
        ),
        (None, {"data": X}, r"`data` must be \(x, y\)"),
        (None, {"data": (X, {"kind": LABELS})}, "`data` must hold labels"),
        (None, {"data": []}, "`data` must hold examples"),
        (
            lambda: keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)]),
            {"data": (X + np.nan, LABELS)},
            "must be finite numbers. Received: NaN or infinity for 210 of 210 examples",
        ),
        (None, {"data": (X, LABELS, -LABELS)}, "Sample weights must be finite numbers of at least"),
        (None, {"power": 3}, "`power` must be a number"),
        (None, {"batch_size": 0}, "`batch_size` must be a whole number of at least 1"),
        (
            None,
            {"loss": "sparse_categorical_crossentropy"},
            "`loss` must take scores: .*from_logits",
        ),
        (None, {"loss": keras_ldam.CrossEntropy(), "scale": 2.0}, "`scale` must be None with a `l"),
        (None, {"epochs": 0}, "`epochs` must be a whole number of at least 1"),
        (None, {"data": (X, LABELS + (LABELS > 0))}, "none of class 1"),
        (None, {"data": (X[LABELS < 2], LABELS[LABELS < 2])}, "none of class 2"),
        (None, {"data": (X[:4], [0, 1, 2, 3])}, "Labels must be whole numbers in 0 … 2"),
    ],
)
def test_bad_input_gets_one_sentence(model, make, arguments, sentence):
    given = model if make is None else make()
    arguments = {"data": (X, LABELS), **arguments}
    with pytest.raises(ValueError, match=sentence):
        keras_ldam.retrain_head(given, arguments.pop("data"), **arguments)


def test_factors_are_not_trained_on_scores_as_probabilities(model):
    with pytest.raises(ValueError, match="`loss` must take scores"):
        keras_ldam.rescale_head(model, (X, LABELS), loss="sparse_categorical_crossentropy")


def test_a_model_that_cannot_be_copied_is_changed_in_place_on_demand():
    class Odd(Subclassed):
        def get_config(self):
            raise TypeError("no config")

    model = Odd()
    model(X[:1])
    with pytest.raises(ValueError, match=r"cannot be copied .*\(no config\).*`in_place=True`"):
        keras_ldam.retrain_head(model, (X, LABELS), epochs=1)
    assert keras_ldam.retrain_head(model, (X, LABELS), epochs=1, in_place=True) is model


def test_weights_of_none_are_none(model):
    found = retraining._Features(model, (X, LABELS, None), None, 32)
    assert len(found.targets) == 1
    np.testing.assert_array_equal(found.targets[0], LABELS)


# --------------------------------------------------------------------------- class means


def test_an_example_that_is_not_finite_has_no_direction():
    model = keras.Sequential([keras.Input((2,)), keras_ldam.CosineDense(2)])
    x, before = np.array([[1, 0], [np.nan, 3], [-2, 0]], "float32"), model.get_weights()
    with pytest.raises(ValueError, match=r"features of `data` must be finite .* 1 of 3 examples"):
        keras_ldam.start_from_means(model, (x, np.array([0, 1, 1])))
    assert_equal(model.get_weights(), before)


@pytest.mark.parametrize("use_bias", [False, True])
def test_a_cosine_head_starts_from_the_mean_direction_of_each_class(use_bias):
    head = keras_ldam.CosineDense(2, use_bias=use_bias, constant=1.5)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Rescaling(2.0), head])
    x = np.array([[1, 0], [0, 3], [-2, 0], [7, 7]], "float32")
    if not use_bias:
        keras_ldam.start_from_means(model, (x, np.array([0, 0, 1, 1])))
        expected = np.stack([[1, 1], np.array([-1, 0]) + np.sqrt([0.5, 0.5])])
    else:  # One-hot labels and weights; the last example has none.
        keras_ldam.start_from_means(model, (x, np.eye(2)[[0, 0, 1, 1]], np.array([1, 3, 1, 0])))
        units = np.array([[2, 0, 1.5], [0, 6, 1.5], [-4, 0, 1.5]])
        units = units / np.linalg.norm(units, axis=1, keepdims=True)
        expected = np.stack([units[0] + 3 * units[1], units[2]])
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    vectors = np.concatenate([weights.reshape(-1, 2) for weights in head.get_weights()])
    np.testing.assert_allclose(vectors, expected.T, atol=1e-6)


def test_a_second_stage_from_class_means_begins_at_them():
    model = functional(keras_ldam.CosineDense(3, scale=16.0, name="head"))
    still = keras.optimizers.SGD(0.0)
    fresh = keras_ldam.retrain_head(model, (X, LABELS), epochs=1, optimizer=still, from_means=True)
    keras_ldam.start_from_means(model, (X, LABELS))
    assert_equal(weights_of(model)[1], weights_of(fresh)[1])
    with pytest.raises(ValueError, match="Received: none of class 2"):
        keras_ldam.start_from_means(model, (X[:200], LABELS[:200]))


def test_means_of_many_classes_need_no_array_of_examples_and_classes():
    head = keras_ldam.CosineDense(3000)
    head.build((None, 4))
    features, labels = np.ones((3000, 4), "float32"), np.arange(3000)
    tracemalloc.start()
    retraining._set_means(head, features, (labels,))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3000 * 3000


def test_class_means_need_a_cosine_head(model):
    with pytest.raises(ValueError, match="at least two classes"):
        keras_ldam.start_from_means(model, (X, LABELS))
    with pytest.raises(ValueError, match="at least two classes"):
        keras_ldam.retrain_head(model, (X, LABELS), from_means=True)
