"""What the stronger recipes are made of, inside a run: mixtures, sharpness, the cosine."""

import argparse
import dataclasses
import importlib
from pathlib import Path

import keras
import made_images
import numpy as np
import pytest
from conftest import small_config

from keras_ldam import counts as class_counts
from keras_ldam import estimate_batch_norm, evaluation
from keras_ldam.experiments import datasets, exporting, feeding, models, progress, recipes, training
from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets.data import Ragged
from keras_ldam.experiments.datasets.sampling import EpochClock
from keras_ldam.experiments.place import Place
from keras_ldam.experiments.run_folder import RunFolder
from keras_ldam.sampling import mixing
from keras_ldam.wrappers import sharpness

STRONG = {
    "method": "ldam_drw", "mix": "cutmix", "mix_power": 2.0, "mix_majority": True,
    "augment": "autoaugment", "cutout": 3, "sharpness": 0.1, "decay": "cosine",
    "epochs": 3, "drop_at": (0.67,), "steps_per_epoch": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a short run with everything; not to be changed."""
    folder = tmp_path_factory.mktemp("strong") / "run"
    training.train(small_config(**STRONG), folder, progress=False)
    return folder


def test_a_run_with_everything_is_logged_and_loaded_as_any_other(run):
    rows = RunFolder(run).read_history()
    falling = [1e-3 * (1 + np.cos(np.pi * epoch / 3)) for epoch in range(3)]
    np.testing.assert_allclose([row["learning_rate"] for row in rows], falling, rtol=1e-5)
    assert [row["reweighted"] for row in rows] == [0, 0, 1]
    model = RunFolder(run).load_model()
    assert not isinstance(model, sharpness.SharpnessAwareTraining)
    assert model.input_shape == (None, 8, 8, 1)


def test_a_run_of_mixtures_alone_is_loaded_as_it_was_saved(tmp_path):
    config = small_config(mix="mixup")
    saved = training.compiled_model(config, datasets.load(config))
    saved.save(tmp_path / "model.keras")
    loaded = RunFolder(tmp_path).load_model()
    assert loaded.get_compile_config() == saved.get_compile_config()


def test_mixtures_are_decided_by_seed_epoch_step_and_share():
    config = small_config(**STRONG)
    data = datasets.load(config)
    whole = feeding.training_batches(config, data)
    halves = feeding.training_batches(config, data, replicas=2)
    second = feeding.training_batches(config, data, replicas=2, own=range(1, 2))
    for batches in (whole, halves, second):
        batches.epoch = 1
    x, y = whole[2]
    again, _ = whole[2]
    np.testing.assert_array_equal(x, again)
    assert x.dtype == np.uint8 and y.shape == (32, 10)
    np.testing.assert_allclose(y.sum(1), 1, rtol=1e-6)
    # With `majority` the heavier label is that of the epoch's own order.
    own = data.train.labels[whole.plan(1)[2][:, 0]]
    np.testing.assert_array_equal(y.argmax(1)[y.max(1) > 0.5], own[y.max(1) > 0.5])
    np.testing.assert_array_equal(halves[5][0], second[2][0])


def test_averaged_weights_are_evaluated_and_kept_and_training_goes_on_from_the_others(
    tmp_path, monkeypatch
):
    config = small_config(method="erm", average=0.75, epochs=1, steps_per_epoch=3)
    data, folder = datasets.load(config), RunFolder(tmp_path)
    folder.create(config, data.describe())
    batches = feeding.training_batches(config, data)
    model = training.compiled_model(config, data)
    model.run_eagerly = True  # Tracing takes longer than three steps.
    record = progress.Progress(folder, config, data, Place(), model, batches)
    raw, evaluated = [], []

    def errors(plain, *_, **__):
        evaluated.append(plain.get_weights())
        return {"mean_error": 1.0, "per_class_error": [1.0] * 10}

    monkeypatch.setattr(evaluation, "class_errors", errors)
    clock = EpochClock(batches)
    keep = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda *_, **__: raw.append(model.get_weights()),
        on_epoch_end=lambda *_, **__: raw.append(model.get_weights()),
    )
    model.fit(batches, epochs=1, verbose=0, shuffle=False, callbacks=[clock, record, keep])
    for before, after in zip(*raw[-2:], strict=True):
        np.testing.assert_array_equal(before, after)

    expected = raw[0]
    for weights in raw[1:3]:
        expected = [0.75 * a + 0.25 * w for a, w in zip(expected, weights, strict=True)]
    model.set_weights(expected)  # The statistics among them are replaced.
    estimate_batch_norm(model, [batches[i][0] for i in range(3)])
    for ours, theirs in zip(evaluated[0], model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    model.set_weights(raw[0])  # As of a checkpoint, which a run that is taken up starts from.
    record.finish()
    for ours, theirs in zip(folder.load_model().get_weights(), evaluated[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_sharpness_wraps_two_branches_and_the_network_that_answers_is_found():
    config = small_config(method="bbn", sharpness=0.1)
    data = datasets.load(config)
    trained = training.compiled_model(config, data)
    assert trained.rho == 0.1
    assert len(trained.model.inputs) == 3
    assert models.of_one_input(trained).input_shape == (None, 8, 8, 1)


def test_images_on_the_disk_are_mixed_as_those_in_memory_after_they_are_cropped(tmp_path):
    made_images.write_folder(tmp_path, [12, 6, 3])
    config = Config(
        dataset="folder", data_dir=str(tmp_path), imbalance="none", image_size=32, method="erm",
        network="small_cnn", batch_size=4, mix="cutmix", mix_power=2.0,
    ).resolve()  # fmt: skip
    data = datasets.load(config)
    # The two branches of BBN get the same images, one beside the other.
    apart = dataclasses.replace(config, mix="", rule="bilateral")

    def read(config, **shares):
        batches = feeding.training_batches(config, data, **shares)
        batches.epoch = 7
        return list(feeding.feed(batches).as_numpy_iterator()), batches

    (found, batches), (pairs, _) = read(config), read(apart)
    assert len(found) == len(batches) == 5 and len(found[4][1]) == 1
    for step, (((x, partner, _), _), (mixtures, soft)) in enumerate(
        zip(pairs, found, strict=False)
    ):
        generator = np.random.default_rng([config.seed, 7, 4, step, 0])
        expected, shares = mixing.mix("cutmix", x, partner, generator)
        np.testing.assert_array_equal(mixtures, expected)
        first, second = (np.eye(3)[data.train.labels[i]] for i in batches.plan(7)[step].T)
        weights = shares[:, None]
        np.testing.assert_allclose(soft, weights * first + (1 - weights) * second, atol=1e-6)
    second, _ = read(config, replicas=2, own=range(1, 2))
    both, _ = read(config, replicas=2)
    np.testing.assert_array_equal(second[3][0], both[7][0])


def test_mixtures_of_sequences_are_refused():
    config = small_config(mix="mixup")
    data = datasets.load(config)
    words = Ragged(np.arange(1, 418, dtype=np.int32), np.ones(417, np.int64))
    sequences = dataclasses.replace(data.train, examples=words)
    with pytest.raises(ValueError, match="`mix` needs images, or vectors that are held in memory"):
        feeding.training_batches(config, dataclasses.replace(data, train=sequences))


def test_augmentation_is_of_both_images_of_a_pair_and_decided_by_step_and_share():
    config = small_config(method="bbn", augment="autoaugment", cutout=3)
    data = datasets.load(config)
    plain = feeding.training_batches(small_config(method="bbn"), data)
    whole = feeding.training_batches(config, data)
    halves = feeding.training_batches(config, data, replicas=2)
    second = feeding.training_batches(config, data, replicas=2, own=range(1, 2))
    ((x, partner, _), _), ((before, partner_before, _), _) = whole[1], plain[1]
    assert (x != before).any((1, 2, 3)).mean() > 0.9
    assert (partner != partner_before).any((1, 2, 3)).mean() > 0.9
    assert ((x == before) | (x == 5)).mean() > 0.3  # The mean of all images, 4.9.
    np.testing.assert_array_equal(halves[3][0][0], second[1][0][0])
    np.testing.assert_array_equal(x, whole[1][0][0])


@pytest.mark.parametrize("changes", [{"augment": "autoaugment"}, {"cutout": 3}])
def test_augmentation_of_what_is_no_image_in_memory_is_refused(changes):
    config = small_config(**changes)
    data = datasets.load(config)
    on_disk = dataclasses.replace(data.train, load=lambda example, drawn=None: example)
    vectors = dataclasses.replace(data.train, examples=data.train.examples.reshape(-1, 64))
    for split in (on_disk, vectors):
        with pytest.raises(ValueError, match="`augment` and `cutout` need images that are held in"):
            feeding.training_batches(config, dataclasses.replace(data, train=split))


def test_the_frequencies_that_mixtures_teach_have_those_of_the_partners_in_them():
    counts = np.array([90, 9, 1])
    plain = small_config(method="erm", mix="mixup", mix_power=2.0)
    learned = exporting.learned_frequencies(plain, counts)
    reversed_ = (1 / counts) / (1 / counts).sum()
    np.testing.assert_allclose(learned, (counts / 100 + reversed_) / 2, atol=0.01)
    never = dataclasses.replace(plain, mix_probability=0.0)
    np.testing.assert_allclose(exporting.learned_frequencies(never, counts), counts / 100)
    # Late weights: the weighted mean of the labels is what a network without features predicts.
    late = dataclasses.replace(plain, method="ce_drw", rule="drw", mix="cutmix")
    data = datasets.load(late)
    batches = feeding.training_batches(late, data)
    labels = np.concatenate([batches[place][1] for _ in [0] for place in range(len(batches))])
    weights = class_counts.class_weights(data.counts)
    expected = labels.mean(axis=0) * weights
    found = exporting.learned_frequencies(late, data.counts)
    np.testing.assert_allclose(found, expected / expected.sum(), atol=0.05)
    # The head of a second stage is trained on examples as they are, balanced.
    second = dataclasses.replace(plain, method="crt", rule="rs")
    np.testing.assert_allclose(exporting.learned_frequencies(second, counts), np.full(3, 1 / 3))


def test_validation_may_be_on_what_the_imbalance_leaves_out():
    config = small_config(validation_fraction=0.1, left_out=True)
    data, whole = datasets.load(config), datasets.load(small_config())
    held = datasets.load(dataclasses.replace(config, left_out=False))
    np.testing.assert_array_equal(data.train.examples, held.train.examples)
    assert data.test_name == "validation"
    everything = len(whole.train) - len(data.train) + left_out_of_digits()
    assert len(data.test) == everything
    counts = np.bincount(data.test.labels, minlength=10)
    assert counts[0] < counts[9] and counts.min() > 0

    def rows(split):
        return {image.tobytes() for image in split.examples}

    assert not rows(data.train) & rows(data.test)


def left_out_of_digits():
    every = datasets.load(small_config(imbalance="none"))
    return len(every.train) - len(datasets.load(small_config()).train)


def test_accuracy_under_soft_labels_is_the_share_of_the_predicted_class():
    scores = np.array([[0.1, 0.9], [2.0, -1.0]], "float32")
    labels = np.array([[0.25, 0.75], [0.0, 1.0]], "float32")
    found = keras.ops.convert_to_numpy(models.soft_accuracy(labels, scores))
    np.testing.assert_allclose(found, [0.75, 0.0])


@pytest.mark.parametrize("recipe", ["", "fast"])
def test_every_row_of_the_ablation_resolves_on_validation_images_and_is_known_by_its_changes(
    recipe, monkeypatch
):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    ablation = importlib.import_module("ablation")
    same = {"data_dir": "", "seed": 0, "epochs": 60, "steps_per_epoch": 0, "precision": "float32"}
    given = argparse.Namespace(dataset="cifar10", recipe=recipe, **same)
    base = recipes.load_recipe("cifar10", "ldam_drw", recipe)
    changes = []
    for row in ablation.ROWS:
        config = ablation.config(row, given)
        assert (config.left_out, config.validation_fraction, config.epochs) == (True, 0.05, 60)
        assert config.recipe == recipe
        changes.append(ablation.changes(base, ablation.ROWS[row]))
        assert all(getattr(config, name) == value for name, value in ablation.ROWS[row].items())
    known = [each for each in changes if each or not recipe]  # That recipe has the cosine already.
    assert len(known) > 12
    assert all(known.count(each) == 1 for each in known)
