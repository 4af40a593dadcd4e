"""iNaturalist 2018: reading the release, its checks, its scale, and a run from end to end."""

from __future__ import annotations

import json
import shutil
import tracemalloc

import keras
import made_images
import numpy as np
import pytest
import tensorflow as tf
from conftest import without_graphs

import keras_ldam
from keras_ldam import counts as class_counts
from keras_ldam.experiments import cli, datasets, training
from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets import images, inaturalist2018
from keras_ldam.experiments.datasets.data import Split
from keras_ldam.experiments.datasets.sampling import Batches
from keras_ldam.experiments.models.resnet50 import resnet50
from keras_ldam.experiments.recipes import load_recipe
from keras_ldam.layers import CosineDense
from keras_ldam.losses import LOSSES
from keras_ldam.optimizers import MomentumSGD

COUNTS = [24, 12, 8, 5, 3, 2]


@pytest.fixture(scope="session")
def release(tmp_path_factory):
    """A small release; not to be changed."""
    root = tmp_path_factory.mktemp("release")
    made_images.write_release(root, COUNTS)
    return root


@pytest.fixture
def own_release(release, tmp_path):
    """A copy of the small release, to be damaged."""
    return shutil.copytree(release, tmp_path / "release")


def small(root, **changes):
    values = {
        "dataset": "inaturalist2018",
        "imbalance": "none",
        "image_size": 32,
        "network": "small_cnn",
        "epochs": 3,
        "drop_at": (0.67,),
        "drop_factor": 0.1,
        "batch_size": 16,
        "optimizer": "adam",
        "learning_rate": 5e-3,
        "max_margin": 0.3,
    }
    return Config(data_dir=str(root), **{**values, **changes}).resolve()


def annotation(root, name="train2018.json"):
    return json.loads((root / name).read_text())


def rewrite(root, values, name="train2018.json"):
    (root / name).write_text(json.dumps(values))


# ----------------------------------------------------------------------------- reading


def test_labels_counts_and_names_come_from_the_annotation_by_id(release):
    data = inaturalist2018.load(small(release))
    assert data.counts.tolist() == COUNTS
    assert data.class_names == tuple(f"species {label}" for label in range(6))
    assert (len(data.train), len(data.test), data.test_name) == (54, 18, "validation")
    for split in (data.train, data.test):
        for name, label in zip(split.examples, split.labels, strict=True):
            assert int(name.decode().split("/")[2]) == label
    assert data.train.examples.dtype.kind == "S"  # The index is all that stays in memory.


def test_categories_are_classes_in_the_order_of_their_ids(own_release):
    for name in ("train2018.json", "val2018.json"):
        values = annotation(own_release, name)
        for category in values["categories"]:
            category["id"] = 900 - 100 * category["id"]
        for pair in values["annotations"]:
            pair["category_id"] = 900 - 100 * pair["category_id"]
        rewrite(own_release, values, name)
    data = inaturalist2018.load(small(own_release))
    assert data.counts.tolist() == COUNTS[::-1]
    assert data.class_names[0] == "species 5"


def test_tfds_gives_the_same_images_and_labels(release, tmp_path):
    import tensorflow_datasets as tfds

    builder = tfds.builder("i_naturalist2018", data_dir=str(tmp_path))
    names = builder.info.features["label"].names
    wanted = inaturalist2018.load(small(release))

    def examples(split):
        for name, label in zip(split.examples, split.labels, strict=True):
            path = release / name.decode()
            yield path.stem, {
                "id": path.stem, "image": str(path), "label": int(label), "supercategory": 0
            }  # fmt: skip

    builder._split_generators = lambda manager: {
        "train": examples(wanted.train), "validation": examples(wanted.test)
    }  # fmt: skip
    builder.download_and_prepare()
    train, validation = inaturalist2018._from_tfds(small(tmp_path))[1:]
    assert len(names) == 8142
    assert np.bincount(train.labels).tolist() == COUNTS
    assert len(validation) == 18
    # TFDS shuffles, so images are compared as a set for each class.
    for theirs, ours in ((train, wanted.train), (validation, wanted.test)):
        for label in range(6):
            pixels = [
                {
                    bytes(split.load(split.examples[i]).numpy())
                    for i in np.flatnonzero(split.labels == label)
                }
                for split in (theirs, ours)
            ]
            assert pixels[0] == pixels[1]
    batch, labels = next(iter(images.stream(Batches(train, 8, seed=0))))
    assert batch.shape == (8, 32, 32, 3)
    assert labels.shape == (8,)


def test_another_imbalance_than_that_of_the_release_and_a_missing_folder_are_refused(
    release, tmp_path
):
    with pytest.raises(ValueError, match="`imbalance` must be none"):
        inaturalist2018.load(small(release, imbalance="longtail"))
    with pytest.raises(ValueError, match="is not an existing folder"):
        inaturalist2018.load(small(tmp_path / "nowhere"))


# ----------------------------------------------------------------------------- streaming


def test_an_epoch_is_the_same_each_time_and_another_epoch_has_other_crops_and_order(release):
    split = inaturalist2018.load(small(release)).train
    batches = Batches(split, 16, seed=4)
    stream = images.stream(batches)

    def epoch(number):
        batches.epoch = number
        read = list(stream.as_numpy_iterator())
        return [x for x, _ in read], np.concatenate([y for _, y in read])

    first, labels = epoch(0)
    again, labels_again = epoch(0)
    other, other_labels = epoch(1)
    assert [len(x) for x in first] == [16, 16, 16, 6]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (labels == labels_again).all()
    assert (labels == split.labels[np.concatenate(batches.plan(0))]).all()
    assert sorted(labels) == sorted(other_labels)
    assert (labels != other_labels).any()
    # An epoch of few steps is the beginning of the whole one.
    short = images.stream(Batches(split, 16, seed=4, steps=2))
    read = [x for x, _ in short.as_numpy_iterator()]
    assert len(read) == 2
    assert all((a == b).all() for a, b in zip(first, read, strict=False))
    # The same image is cropped differently in another epoch.
    position = [int(np.flatnonzero(np.concatenate(batches.plan(e)) == 0)[0]) for e in (0, 1)]
    crops = [np.concatenate(read)[at] for read, at in zip((first, other), position, strict=True)]
    assert (crops[0] != crops[1]).any()


def test_a_re_sampled_epoch_draws_the_rare_classes_as_often_and_crops_each_draw_anew(release):
    split = inaturalist2018.load(small(release)).train
    batches = Batches(split, 54, seed=0, counts=np.array(COUNTS), resample="inverse")
    stream, drawn = images.stream(batches), []
    for batches.epoch in range(10):
        pixels, labels = next(stream.as_numpy_iterator())
        drawn.append(labels)
    shares = np.bincount(np.concatenate(drawn)) / 540
    assert np.abs(shares - 1 / 6).max() < 0.06
    indices = batches.plan(9)[0]
    often = np.argmax(np.bincount(indices))
    assert len({bytes(pixels[i]) for i in np.flatnonzero(indices == often)}) > 1


def test_evaluation_streams_every_image_once_in_order_and_without_randomness(release):
    split = inaturalist2018.load(small(release)).train
    seen = list(split.batches(20))
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in seen]), split.labels)
    assert [len(pixels) for pixels, _ in seen] == [20, 20, 14]
    for place in (3, 23, 53):
        image = seen[place // 20][0][place % 20]
        assert (image == split.load(split.examples[place]).numpy()).all()
    many = Split(np.resize(split.examples, 150), np.zeros(150, int), split.load)
    assert [len(pixels) for pixels, _ in many.batches(500)] == [100, 50]  # They are large.


# ----------------------------------------------------------------------------- bad input


def test_a_file_that_the_annotation_names_but_is_not_there_is_named(own_release):
    name = annotation(own_release)["images"][3]["file_name"]
    (own_release / name).unlink()
    with pytest.raises(ValueError, match=f"{name}, which does not exist"):
        inaturalist2018.load(small(own_release))
    data = inaturalist2018.load(small(own_release, skip_corrupt=True))
    assert data.skipped == (name,)
    assert data.counts.tolist() == [COUNTS[0] - 1, *COUNTS[1:]]


def test_a_truncated_image_is_named_before_training_or_skipped_and_counted(own_release):
    names = [image["file_name"] for image in annotation(own_release)["images"][:8:2]]
    whole = [(own_release / name).read_bytes() for name in names]
    for name, contents, kept in zip(names, whole, (0, 10, 300, -2), strict=True):
        (own_release / name).write_bytes(contents[:kept])
        with pytest.raises(ValueError, match=f"^{own_release / name} cannot be .*--skip_corrupt"):
            inaturalist2018.load(small(own_release))
        (own_release / name).write_bytes(contents)
    for name, contents, kept in zip(names, whole, (0, 10, 300, -2), strict=True):
        (own_release / name).write_bytes(contents[:kept])
    data = inaturalist2018.load(small(own_release, skip_corrupt=True))
    assert data.skipped == tuple(names)
    assert not {name.encode() for name in names} & set(data.train.examples)
    for example, label in zip(data.train.examples, data.train.labels, strict=True):
        assert int(example.decode().split("/")[2]) == label


def test_bytes_after_the_end_of_a_whole_jpeg_do_no_harm(own_release):
    name = annotation(own_release)["images"][0]["file_name"]
    with open(own_release / name, "ab") as file:
        file.write(bytes(1000))
    assert inaturalist2018.load(small(own_release)).counts.tolist() == COUNTS


def test_damage_that_shows_only_on_decoding_ends_training_and_evaluation_with_the_files_name(
    own_release, tmp_path
):
    values = annotation(own_release)
    name = values["images"][7]["file_name"]
    contents = (own_release / name).read_bytes()
    # Whole at both ends, but what is between is not a JPEG.
    (own_release / name).write_bytes(contents[:3] + bytes(500) + contents[-2:])
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        training.train(small(own_release), tmp_path / "run")
    split = inaturalist2018.load(small(own_release)).train
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        list(split.batches(16))
    data = inaturalist2018.load(small(own_release, skip_corrupt=True))
    assert data.skipped == (name,)


def _without_category(values):
    values["categories"].pop(2)


def _unknown_image(values):
    values["annotations"][0]["image_id"] = 10**6


def _no_category(values):
    values["annotations"].pop()


def _two_categories(values):
    pair = values["annotations"][0]
    values["annotations"].append({**pair, "category_id": (pair["category_id"] + 1) % 6})


def _same_id(values):
    values["images"][1]["id"] = values["images"][0]["id"]


def _no_layout(values):
    values.pop("annotations")


def _nothing(values):
    values["annotations"], values["images"] = [], []


def _outside(values):
    values["images"][0]["file_name"] = "train_val2018/../../secret.jpg"


def _absolute(values):
    values["images"][0]["file_name"] = "/etc/secret.jpg"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_category, "into category 2, which it does not list"),
        (_unknown_image, "annotates image 1000000, which it does not list"),
        (_no_category, "gives it no category"),
        (_two_categories, "into two categories"),
        (_same_id, "two images with the same id"),
        (_no_layout, "not an annotation in COCO's layout"),
        (_nothing, "annotates no image"),
        (_outside, r"names train_val2018/\.\./\.\./secret\.jpg, which may lie outside"),
        (_absolute, r"names /etc/secret\.jpg, which may lie outside"),
    ],
)
def test_an_annotation_at_odds_with_itself_is_refused_by_name(own_release, damage, message):
    values = annotation(own_release)
    damage(values)
    rewrite(own_release, values)
    with pytest.raises(ValueError, match=message) as caught:
        inaturalist2018.load(small(own_release))
    assert "train2018.json" in str(caught.value)


def test_a_category_without_training_images_or_without_validation_images_is_refused(own_release):
    def without(name, label):
        values = annotation(own_release, name)
        gone = {a["image_id"] for a in values["annotations"] if a["category_id"] == label}
        values["images"] = [i for i in values["images"] if i["id"] not in gone]
        values["annotations"] = [a for a in values["annotations"] if a["image_id"] not in gone]
        rewrite(own_release, values, name)

    without("val2018.json", 1)
    with pytest.raises(ValueError, match="species 1 has training images but no validation image"):
        inaturalist2018.load(small(own_release))
    without("train2018.json", 4)
    with pytest.raises(ValueError, match=r"\(species 4\) has no training example"):
        inaturalist2018.load(small(own_release, validation_fraction=0.3))


def test_a_damaged_or_missing_annotation_file_is_named(own_release):
    (own_release / "val2018.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"val2018\.json cannot be read as JSON"):
        inaturalist2018.load(small(own_release))
    (own_release / "val2018.json").unlink()
    with pytest.raises(ValueError, match=r"val2018\.json is missing"):
        inaturalist2018.load(small(own_release))


def test_annotations_that_differ_in_their_categories_are_refused(own_release):
    values = annotation(own_release, "val2018.json")
    values["categories"].append({"id": 77, "name": "species 77", "supercategory": "Aves"})
    rewrite(own_release, values, "val2018.json")
    with pytest.raises(ValueError, match="differ in category 77"):
        inaturalist2018.load(small(own_release))


# ----------------------------------------------------------------------------- from end to end


@pytest.fixture(scope="module")
def run(release, tmp_path_factory):
    """A run that was cut off after its second epoch and resumed; and the same without a break."""
    folder = tmp_path_factory.mktemp("runs")
    config = small(release, epochs=4, drop_at=(0.75,))
    with without_graphs():
        whole = training.train(config, folder / "whole")
        with pytest.MonkeyPatch.context() as patch:
            schedule = training.schedule
            patch.setattr(training, "schedule", lambda *given: [*schedule(*given), _Kill(after=1)])
            with pytest.raises(_KilledError):
                training.train(config, folder / "broken")
        resumed = training.train(config, folder / "broken")
    return folder / "broken", resumed, folder / "whole", whole


class _KilledError(Exception):
    pass


class _Kill(keras.callbacks.Callback):
    def __init__(self, after):
        super().__init__()
        self.after = after

    def on_epoch_begin(self, epoch, logs=None):
        if epoch > self.after:
            raise _KilledError


def test_a_resumed_run_sees_the_images_and_crops_that_it_would_have_seen(run):
    broken_folder, resumed, whole_folder, whole = run
    assert resumed["last"] == whole["last"]
    ours, theirs = (
        keras.models.load_model(folder / "model.keras").get_weights()
        for folder in (broken_folder, whole_folder)
    )
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, atol=1e-5)
    assert resumed["counts"] == COUNTS
    assert resumed["skipped"] == 0
    assert {"top5_error", "medium_error", "few_error"} <= resumed["last"].keys()
    assert resumed["best"]["mean_error"] < 50


def test_evaluate_gives_the_errors_of_the_results(run):
    folder, resumed, *_ = run
    evaluated = training.evaluate(folder)
    assert evaluated["split"] == "validation"
    assert evaluated["per_class_error"] == resumed["last"]["per_class_error"]


def test_the_exported_model_answers_files_of_any_size_as_the_trained_one_does(
    run, release, tmp_path, capsys
):
    folder = run[0]
    assert cli.main("export", [f"--run_dir={folder}", f"--output={tmp_path / 'species'}"]) == 0
    capsys.readouterr()
    split = inaturalist2018.load(small(release)).test
    files = [str(release / name.decode()) for name in split.examples[::3]]
    made_images.picture(2, 9999, (600, 400)).save(tmp_path / "large.jpg")
    files.append(str(tmp_path / "large.jpg"))
    assert cli.main("predict", [f"--model={tmp_path / 'species'}", *files]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    pixels = np.stack([images.center_image(tf.io.read_file(file), 32) for file in files])
    cosines = keras.models.load_model(folder / "model.keras").predict_on_batch(pixels)
    wanted = np.exp(30 * cosines)
    wanted /= wanted.sum(axis=1, keepdims=True)
    for answer, row in zip(answers, wanted, strict=True):
        np.testing.assert_allclose(answer["probabilities"], row, atol=1e-5)
        assert answer["label"] == f"species {row.argmax()}"


# ----------------------------------------------------------------------------- at full scale


def made_counts():
    """8,142 counts of the release's shape: sum 437,513, largest 1,000, smallest 2."""
    ranks = np.arange(8142)
    # A power of the rank for the head, a slow fall for the tail; then the sum is made exact.
    counts = np.maximum(1000 * (1 + ranks / 45) ** -0.9, 2).round().astype(np.int64)
    low, high = 0.2, 2.0
    while high - low > 1e-9:
        power = (low + high) / 2
        counts = np.maximum(1000 * (1 + ranks / 45) ** -power, 3).round().astype(np.int64)
        low, high = (power, high) if counts.sum() > 437513 else (low, power)
    counts[-1] = 2
    excess = counts.sum() - 437513
    middle = slice(1000, 1000 + abs(int(excess)))
    counts[middle] -= np.sign(excess)
    return counts


def test_at_8142_classes_margins_weights_losses_and_gradients_are_right_and_finite():
    counts = made_counts()
    assert (len(counts), counts.sum(), counts.max(), counts.min()) == (8142, 437513, 1000, 2)
    margins = class_counts.margins(counts, max_margin=0.3)
    assert margins.max() == np.float32(0.3)
    np.testing.assert_allclose(margins, 0.3 * (2 / counts) ** 0.25, rtol=1e-6)
    weights = class_counts.class_weights(counts, kind="effective", beta=0.9999)
    wanted = (1 - 0.9999) / (1 - 0.9999 ** counts.astype(np.float64))
    np.testing.assert_allclose(weights, wanted * 8142 / wanted.sum(), rtol=1e-5)
    assert weights.sum() == pytest.approx(8142, rel=1e-5)
    generator = np.random.default_rng(0)
    labels = np.concatenate([[0, 8141], generator.integers(0, 8142, 62)])
    cosines = generator.uniform(-1, 1, (64, 8142)).astype(np.float32)
    lowered = cosines.astype(np.float64)
    lowered[np.arange(64), labels] -= margins[labels]
    each = -np.log(np.exp(30 * lowered)[np.arange(64), labels] / np.exp(30 * lowered).sum(axis=1))
    loss = keras_ldam.LDAM(counts, scale=30.0, max_margin=0.3, gradual=False)
    assert float(loss(labels, cosines)) == pytest.approx(each.mean(), rel=1e-5)
    loss.class_weights.assign(weights)
    share = weights[labels] / weights[labels].sum()
    assert float(loss(labels, cosines)) == pytest.approx((share * each).sum(), rel=1e-4)
    for other in (
        loss,
        keras_ldam.Focal(counts, gamma=0.5, form="sigmoid", reduction="sum_over_batch_size"),
        keras_ldam.CrossEntropy(counts),
        keras_ldam.LDAMHinge(counts, max_margin=0.3),
    ):
        scores = tf.Variable(cosines)
        with tf.GradientTape() as tape:
            value = other(labels, scores)
        gradient = tape.gradient(value, scores).numpy()
        assert np.isfinite(float(value))
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() > 0


def test_resnet_50_has_its_parameter_count_and_takes_a_step_at_8142_classes():
    counts = made_counts()
    head = CosineDense(8142, use_bias=False, name="cosines")
    model = resnet50(head=head, input_shape=(32, 32, 3))
    assert model.count_params() == 23_587_712 + 2048 * 8142
    config = load_recipe("inaturalist2018", "ldam_drw").resolve()
    loss = LOSSES[config.loss].make(counts, config.to_json())
    optimizer = MomentumSGD(0.1, momentum=0.9, coupled_weight_decay=1e-4)
    model.compile(optimizer, loss=loss, run_eagerly=True)
    before = model.get_layer("cosines").get_weights()[0]
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    value = model.train_on_batch(pixels, np.array([0, 8141]))
    # At the start cosines are near 0: about log(8142) and half of the margins times the scale.
    assert 9 < value < 30
    after = model.get_layer("cosines").get_weights()[0]
    assert np.isfinite(after).all()
    assert (before != after).any()


def test_the_index_of_437513_images_is_small_and_an_epoch_is_planned_in_a_moment():
    counts = made_counts()
    labels = np.repeat(np.arange(8142, dtype=np.int32), counts)
    names = np.char.add(
        b"train_val2018/Actinopterygii/8141/", np.char.mod("%032x.jpg", labels).astype(np.bytes_)
    )
    split = Split(names, labels)
    assert names.nbytes + labels.nbytes < 40e6
    tracemalloc.start()
    for resample in (None, "effective"):
        batches = Batches(split, 256, seed=0, counts=counts, resample=resample, beta=0.999)
        plan = batches.plan(0)
        assert len(plan) == len(batches) == 1710
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


def test_the_recipe_is_the_papers():
    config = load_recipe("inaturalist2018", "ldam_drw").resolve()
    assert (config.epochs, config.drop_epochs, config.start_epoch) == (90, (30, 60), 60)
    assert (config.learning_rate, config.drop_factor, config.max_margin) == (0.1, 0.1, 0.3)
    assert (config.image_size, images.scaled_side(224)) == (224, 256)
    assert datasets.declared("inaturalist2018").NETWORK == "resnet50"
    for method in ("erm", "cb_focal", "ce_drw", "ldam"):
        load_recipe("inaturalist2018", method).resolve()
    assert load_recipe("inaturalist2018", "cb_focal").beta == 0.999
