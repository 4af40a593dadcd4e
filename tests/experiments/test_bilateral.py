"""BBN: its two samplers, its α, three steps by hand, and a run from end to end."""

import dataclasses

import keras
import made_images
import numpy as np
import pytest
import tensorflow as tf
from conftest import small_config

from keras_ldam.experiments import datasets, exporting, feeding, models, training
from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets.data import Data, Ragged, Split
from keras_ldam.experiments.datasets.sampling import Batches, Bilateral, EpochClock
from keras_ldam.experiments.models.bilateral import bilateral, is_bilateral, one_image
from keras_ldam.experiments.models.resnet32 import resnet32, resnet32_branches
from keras_ldam.experiments.recipes import load_recipe
from keras_ldam.experiments.run_folder import RunFolder
from keras_ldam.losses import CrossEntropy
from keras_ldam.optimizers import MomentumSGD

COUNTS = np.array([900, 90, 9])
LABELS = np.repeat([0, 1, 2], COUNTS)


def pairs_of(split, batch_size, *, length=10, **how):
    counts = np.bincount(split.labels)
    return Batches(split, batch_size, seed=3, pairs=Bilateral(counts, length), **how)


# ----------------------------------------------------------------------------- samplers and α


def test_the_first_images_are_the_shuffled_epoch_and_the_second_come_in_reversed_frequencies():
    batches = pairs_of(Split(np.arange(999), LABELS), 100)
    assert len(batches) == 9  # The last one, of 99, is dropped.
    plans = [np.concatenate(batches.plan(epoch)) for epoch in range(20)]
    assert all(len(set(plan[:, 0].tolist())) == 900 for plan in plans)
    drawn = np.concatenate(plans)[:, 1]
    # P(j) ∝ 1/n_j = 1 : 10 : 100.
    chances = np.array([1, 10, 100]) / 111
    found = np.bincount(LABELS[drawn], minlength=3) / len(drawn)
    assert (np.abs(found - chances) < 4 * np.sqrt(chances * (1 - chances) / len(drawn))).all()
    # Within a class every example is as probable as the others.
    rare = np.bincount(drawn[drawn >= 990] - 990, minlength=9)
    assert rare.min() > 0.9 * rare.mean()
    assert not np.array_equal(plans[0][:, 1], plans[1][:, 1])
    np.testing.assert_array_equal(np.concatenate(batches.plan(0)), plans[0])


def test_fewer_examples_than_a_batch_are_one_batch():
    assert len(pairs_of(Split(np.arange(5), np.array([0, 0, 0, 1, 1])), 8)) == 1


def test_alpha_falls_from_one_as_a_parabola():
    pairs = Bilateral(COUNTS, 200)
    assert [pairs.alpha(epoch) for epoch in (0, 100, 199)] == [1.0, 0.75, 1 - (199 / 200) ** 2]
    # As the authors' code has it for iNaturalist: T = 100 for 90 epochs.
    config = load_recipe("inaturalist2018", "bbn", "bbn").resolve()
    data = Data("made", ("a", "b", "c"), Split(np.arange(999), LABELS), Split([0], [0]))
    assert feeding.training_batches(config, data).pairs.length == 100


def test_shares_put_together_are_the_pairs_of_the_batch():
    split = Split(np.arange(999), LABELS)
    whole, shares = pairs_of(split, 100).plan(1), pairs_of(split, 100, replicas=2).plan(1)
    np.testing.assert_array_equal(np.concatenate(whole), np.concatenate(shares))


def test_pairs_of_images_on_the_disk_are_those_of_the_plan(tmp_path):
    made_images.write_folder(tmp_path, [12, 6, 3])
    config = Config(
        dataset="folder", data_dir=str(tmp_path), imbalance="none", image_size=32, method="bbn",
        network="small_cnn", batch_size=4,
    ).resolve()  # fmt: skip
    data = datasets.load(config)
    batches = feeding.training_batches(config, data)
    batches.epoch = 50
    alpha = 1 - (50 / 200) ** 2
    read = list(feeding.feed(batches).as_numpy_iterator())
    assert len(read) == len(batches) == 4
    for plan, ((first, second, weight), labels) in zip(batches.plan(50), read, strict=True):
        np.testing.assert_allclose(weight, np.full((4, 1), alpha), rtol=1e-6)
        one_hot = np.eye(3)[data.train.labels[plan]]
        expected = alpha * one_hot[:, 0] + (1 - alpha) * one_hot[:, 1]
        np.testing.assert_allclose(labels, expected, rtol=1e-6)
        for images, indices in ((first, plan[:, 0]), (second, plan[:, 1])):
            # The random crop leaves the mean color of a class.
            files = data.train.examples[indices]
            means = [data.train.load(file).numpy().mean((0, 1)) for file in files]
            np.testing.assert_allclose(images.mean((1, 2)), means, atol=12)


# ----------------------------------------------------------------------------- three steps by hand


def linear_parts():
    """Linear throughout, so that its gradients can be written down."""
    images = keras.Input((2, 2, 1), dtype="uint8")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images))
    shared = keras.Model(images, keras.layers.Dense(3, use_bias=False)(x), name="shared")
    return shared, keras.layers.Dense(2, use_bias=False), keras.layers.Dense(3)


def softmax(scores):
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_three_steps_are_those_of_the_paper_computed_by_hand():
    """One step an epoch: α is 1, 8/9 and 5/9."""
    keras.utils.set_random_seed(1)
    labels = np.array([0, 0, 0, 0, 1, 2])
    split = Split(np.random.default_rng(0).integers(0, 256, (6, 2, 2, 1), "uint8"), labels)
    shared, _, head = linear_parts()
    model = bilateral(shared, lambda x: keras.layers.Dense(2, use_bias=False)(x), head)
    names = ("shared", "conventional", "rebalancing")
    s, c, r = (model.get_layer(name).get_weights()[0].astype("float64") for name in names)
    w, b = (value.astype("float64") for value in head.get_weights())

    batches = pairs_of(split, 6, length=3)
    model.compile(
        MomentumSGD(0.5, momentum=0.9, nesterov=True, coupled_weight_decay=0.01),
        loss=CrossEntropy([4, 1, 1]),
        metrics=[models.soft_accuracy],
    )
    history = model.fit(
        feeding.feed(batches), epochs=3, shuffle=False, verbose=0, callbacks=[EpochClock(batches)]
    ).history
    assert history["alpha"] == [1, 1 - 1 / 9, 1 - 4 / 9]

    parameters, velocities = [s, c, r, w, b], [0.0] * 5
    for epoch in range(3):
        alpha = 1 - (epoch / 3) ** 2
        first, second = np.concatenate(batches.plan(epoch)).T
        s, c, r, w, b = parameters
        x_a, x_b = (split.examples[i].reshape(6, 4) / 255 for i in (first, second))
        features = 2 * np.concatenate([alpha * (x_a @ s @ c), (1 - alpha) * (x_b @ s @ r)], 1)
        chances = softmax(features @ w + b)
        rows = np.arange(6)
        loss_a, loss_b = (-np.log(chances[rows, labels[i]]) for i in (first, second))
        loss = np.mean(alpha * loss_a + (1 - alpha) * loss_b)
        hits = [chances.argmax(1) == labels[i] for i in (first, second)]
        assert history["loss"][epoch] == pytest.approx(loss, rel=1e-5)
        accuracy = np.mean(alpha * hits[0] + (1 - alpha) * hits[1])
        assert history["soft_accuracy"][epoch] == pytest.approx(accuracy, rel=1e-5)
        slope = (
            alpha * (chances - np.eye(3)[labels[first]])
            + (1 - alpha) * (chances - np.eye(3)[labels[second]])
        ) / 6
        back = slope @ w.T
        to_c, to_r = 2 * alpha * back[:, :2], 2 * (1 - alpha) * back[:, 2:]
        gradients = [
            x_a.T @ to_c @ c.T + x_b.T @ to_r @ r.T,
            (x_a @ s).T @ to_c,
            (x_b @ s).T @ to_r,
            features.T @ slope,
            slope.sum(0),
        ]
        for i, gradient in enumerate(gradients):
            gradient = gradient + 0.01 * parameters[i]
            velocities[i] = 0.9 * velocities[i] + gradient
            parameters[i] = parameters[i] - 0.5 * (gradient + 0.9 * velocities[i])

    found = [model.get_layer(name).get_weights()[0] for name in names] + head.get_weights()
    for ours, theirs in zip(found, parameters, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)

    # It answers for one image through both branches, unweighted.
    s, c, r, w, b = parameters
    x = split.examples.reshape(6, 4) / 255
    expected = np.concatenate([x @ s @ c, x @ s @ r], 1) @ w + b
    np.testing.assert_allclose(one_image(model)(split.examples), expected, rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------------------- the networks


def parameters(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


@pytest.fixture(scope="module")
def two_branches():
    """ResNet-32 with two branches, as it is trained; not to be changed."""
    return bilateral(*resnet32_branches(seed=0), keras.layers.Dense(10, dtype="float32"))


def test_the_last_block_of_resnet32_stands_twice_and_the_rest_once(two_branches):
    block = 2 * (9 * 64 * 64 + 2 * 64)
    assert parameters(two_branches) == 464_154 + block + 64 * 10
    plain = resnet32(head=keras.layers.Dense(10, dtype="float32"), seed=0)
    shared = two_branches.get_layer("shared")
    for name in ("stem", "stage1_block1_first", "stage3_block4_second"):
        kernels = [each.get_layer(f"{name}_convolution").kernel for each in (plain, shared)]
        np.testing.assert_array_equal(*kernels)
    assert "stage3_block5_first_convolution" not in {layer.name for layer in shared.layers}
    branches = [two_branches.get_layer(name) for name in ("conventional", "rebalancing")]
    kernels = [each.get_layer("stage3_block5_first_convolution").kernel for each in branches]
    np.testing.assert_array_equal(
        kernels[0], plain.get_layer("stage3_block5_first_convolution").kernel
    )
    assert np.abs(np.array(kernels[0]) - np.array(kernels[1])).max() > 0.01


def test_it_answers_as_it_does_for_two_equal_images_of_equal_weight(two_branches):
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype="uint8")
    answer = one_image(two_branches)
    assert answer.get_layer("features").output.shape == (None, 128)
    assert is_bilateral(two_branches) and is_bilateral(answer)
    both = two_branches([images, images, np.full((2, 1), 0.5, "float32")])
    np.testing.assert_allclose(answer(images), both, rtol=1e-5, atol=1e-6)


def test_the_last_bottleneck_of_resnet50_stands_twice():
    images = np.zeros((1, 32, 32, 3), "uint8")
    split = Split(images.repeat(2, 0), [0, 1])
    config = Config(dataset="folder", method="bbn", network="resnet50").resolve()
    model = models.build(config, Data("made", ("a", "b"), split, split))
    # Its three convolutions have biases, as those of keras.applications.
    bottleneck = (2048 * 512 + 512) + (9 * 512 * 512 + 512) + (512 * 2048 + 2048)
    bottleneck += 2 * (512 + 512 + 2048)
    statistics = 2 * 26_560  # 23,587,712 counts moving means and variances, two for each channel.
    assert parameters(model) == 23_587_712 - statistics + bottleneck + 4096 * 2 + 2
    assert models.of_one_input(model).get_layer("features").output.shape == (None, 4096)


def test_sequences_do_not_come_in_pairs():
    data = Data("made", ("a", "b"), *[Split(Ragged.from_sequences([[1, 2], [3]]), [0, 1])] * 2)
    with pytest.raises(ValueError, match="`rule` must not be bilateral for made"):
        feeding.training_batches(small_config(method="bbn"), data)


def test_a_network_that_cannot_have_two_branches_is_refused():
    split = Split(np.zeros((2, 4), "float32"), [0, 1])
    config = Config(method="bbn", network="mlp").resolve()
    with pytest.raises(ValueError, match="two branches: small_cnn, resnet32, resnet50"):
        models.build(config, Data("made", ("a", "b"), split, split))


# ----------------------------------------------------------------------------- a whole run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a short run, and what it printed; not to be changed."""
    folder = tmp_path_factory.mktemp("bbn") / "run"
    with pytest.MonkeyPatch.context() as patch:
        told = []
        patch.setattr("builtins.print", lambda *parts, **how: told.append(" ".join(parts)))
        training.train(small_config(method="bbn", epochs=3, drop_at=()), folder, progress=False)
    return folder, told


def test_the_log_shows_alpha_and_what_both_samplers_draw(run):
    folder, told = run
    (line,) = [line for line in told if line.startswith("Two images a step")]
    assert "draws [123  88  63  45  32  23  16  12   8   6] per class, the reversed one [" in line
    assert line.endswith("alpha = 1 - (epoch / 3)².")
    rows = RunFolder(folder).read_history()
    assert [row["alpha"] for row in rows] == pytest.approx([1, 8 / 9, 5 / 9])
    assert rows[-1]["test_mean_error"] < 60  # Guessing would be 90.


def test_a_run_is_exported_as_any_other(run, tmp_path):
    folder, _ = run
    told = exporting.export(folder, tmp_path / "digits")
    counts = np.array(told["counts"])
    learned = (counts / counts.sum() + (1 / counts) / (1 / counts).sum()) / 2
    np.testing.assert_allclose(told["learned_frequencies"], learned, rtol=1e-6)
    images = datasets.load(small_config()).test.examples[:4]
    served = tf.saved_model.load(told["folder"]).signatures["serving_default"](image=images)
    expected = RunFolder(folder).load_model()(images)
    np.testing.assert_allclose(served["logits"], expected, rtol=1e-5, atol=1e-5)


def test_the_authors_recipe_is_theirs():
    config = load_recipe("cifar10", "bbn", "bbn").resolve()
    rate = training.schedule(config)[0].schedule
    expected = [0.1 / 3, 0.1, 0.1, 1e-3, 1e-3, 1e-5]
    found = [rate(epoch) for epoch in (0, 5, 119, 120, 159, 160)]
    assert found == pytest.approx(expected)
    assert (config.nesterov, config.weight_decay, config.batch_size) == (True, 2e-4, 128)
    assert config.run_name == "cifar10-longtail-100-bbn-bbn-0"
    for epochs, drops in ((90, (60, 80)), (180, (120, 160))):
        config = load_recipe("inaturalist2018", "bbn", "bbn")
        assert dataclasses.replace(config, epochs=epochs).resolve().drop_epochs == drops


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("cifar10", "`recipe` must be one of bbn.*, or empty, for cifar10. Received: recipe='x'"),
        ("digits", "`recipe` must be empty, for digits. Received: recipe='x'"),
    ],
)
def test_an_unknown_name_of_a_recipe_lists_the_known_ones(dataset, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(dataset, "bbn", "x")
