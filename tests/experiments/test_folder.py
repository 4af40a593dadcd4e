"""A user's own folder of images: the two layouts, the checks, and a run from end to end."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil

import keras
import made_images
import numpy as np
import pytest
from conftest import without_graphs

from keras_ldam.experiments import cli, models, training
from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets import folder
from keras_ldam.experiments.recipes import load_recipe
from keras_ldam.experiments.run_folder import RunFolder
from keras_ldam.layers import CosineDense

COUNTS = [20, 10, 5, 2]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with four classes; not to be changed."""
    root = tmp_path_factory.mktemp("pictures")
    made_images.write_folder(root, COUNTS)
    return root


@pytest.fixture
def own(pictures, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(pictures, tmp_path / "pictures")


@pytest.fixture
def parts(pictures, tmp_path):
    """Training and validation images apart."""
    shutil.copytree(pictures, tmp_path / "parts" / "train")
    made_images.write_folder(tmp_path / "parts" / "val", [3] * 4)
    return tmp_path / "parts"


def small(root, **changes):
    values = {
        "dataset": "folder",
        "imbalance": "none",
        "image_size": 32,
        "network": "small_cnn",
    }
    return Config(data_dir=str(root), **{**values, **changes}).resolve()


def test_a_fifth_of_each_class_is_held_out_the_same_for_every_seed(pictures):
    data = folder.load(small(pictures))
    assert data.class_names == ("class_0", "class_1", "class_2", "class_3")
    assert data.counts.tolist() == [16, 8, 4, 1]
    assert np.bincount(data.test.labels).tolist() == [4, 2, 1, 1]
    assert data.test_name == "validation"
    assert not set(data.train.examples) & set(data.test.examples)
    for split in (data.train, data.test):
        for name, label in zip(split.examples, split.labels, strict=True):
            assert name.decode().startswith(f"class_{label}/")
    other = folder.load(small(pictures, seed=5))
    assert set(other.test.examples) == set(data.test.examples)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
def test_training_and_validation_folders_are_taken_as_they_are(parts, name):
    (parts / "val").rename(parts / name)
    data = folder.load(small(parts))
    assert data.counts.tolist() == COUNTS
    assert np.bincount(data.test.labels).tolist() == [3] * 4
    assert data.test_name == ("test" if name == "test" else "validation")
    assert data.test.load(data.test.examples[0]).shape == (32, 32, 3)


def test_a_validation_fraction_is_held_out_of_the_training_images(parts):
    data = folder.load(small(parts, validation_fraction=0.5))
    assert data.counts.tolist() == [10, 5, 3, 1]
    assert np.bincount(data.test.labels).tolist() == [10, 5, 2, 1]


def test_a_class_may_be_called_train(tmp_path):
    made_images.write_folder(tmp_path / "vehicles", [5, 5], names=["bus", "train"])
    assert folder.load(small(tmp_path / "vehicles")).class_names == ("bus", "train")


def test_a_balanced_folder_can_be_made_long_tailed(tmp_path):
    made_images.write_folder(tmp_path / "balanced", [20, 20, 20])
    made_images.write_folder(tmp_path / "parts" / "val", [3] * 3)
    (tmp_path / "balanced").rename(tmp_path / "parts" / "train")
    data = folder.load(small(tmp_path / "parts", imbalance="longtail", imbalance_ratio=10.0))
    assert data.counts.tolist() == [20, 6, 2]
    assert np.bincount(data.test.labels).tolist() == [3, 3, 3]


@pytest.mark.parametrize("names", [("Train", "Val"), ("TRAIN", "TEST"), ("train", "Validation")])
def test_the_parts_may_be_in_capitals(parts, names):
    for old, new in zip(("train", "val"), names, strict=True):
        (parts / old).rename(parts / new)
    (parts / "@eaDir").mkdir()
    data = folder.load(small(parts))
    assert data.counts.tolist() == COUNTS
    assert np.bincount(data.test.labels).tolist() == [3] * 4
    assert data.test_name == ("test" if names[1] == "TEST" else "validation")


def test_parts_of_the_same_name_but_for_capitals_are_refused(parts):
    (parts / "Train").mkdir()
    with pytest.raises(ValueError, match="has Train/ beside train/"):
        folder.load(small(parts))


def test_what_systems_leave_in_folders_is_ignored(own):
    (own / ".DS_Store").touch()
    (own / "@eaDir").mkdir()
    (own / "class_0" / "@eaDir").mkdir()
    (own / "notes.txt").touch()
    (own / ".cache").mkdir()
    (own / "class_0" / "Thumbs.db").touch()
    (own / "class_0" / "._0001.jpg").touch()
    assert folder.load(small(own)).counts.tolist() == [16, 8, 4, 1]


def test_names_with_spaces_and_letters_of_any_script_are_read(own):
    (own / "class_0").rename(own / "große Vögel 鳥")
    (own / "class_1" / "0000.jpg").rename(own / "class_1" / os.fsdecode(b"\xff.jpg"))
    data = folder.load(small(own))
    assert "große Vögel 鳥" in data.class_names
    for split in (data.train, data.test):
        for example in split.examples:
            assert split.load(example).shape == (32, 32, 3)


def test_a_class_whose_name_is_not_utf8_is_refused_before_training(own):
    (own / "class_0").rename(own / os.fsdecode(b"V\xf6gel"))
    with pytest.raises(ValueError, match=r"name is not UTF-8, b'V\\xf6gel': rename it"):
        folder.load(small(own))


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "WEBP"])
def test_other_formats_are_read_as_well_whatever_the_name_says(own, kind):
    picture = made_images.picture(0, 0)
    file = io.BytesIO()
    picture.save(file, kind)
    for name in (f"x.{kind.lower()}", "y.jpg"):
        (own / "class_3" / name).write_bytes(file.getvalue())
    data = folder.load(small(own))
    for split in (data.train, data.test):
        for example in split.examples[split.labels == 3]:
            got = split.load(example).numpy().astype(float)
            assert got.mean() > 10


# ----------------------------------------------------------------------------- bad input


def empty_class(root):
    (root / "class_9").mkdir()


def not_an_image(root):
    (root / "class_1" / "list.csv").write_text("a,b")


def nested(root):
    (root / "class_1" / "more").mkdir()


def single(root):
    (root / "alone").mkdir()
    (root / "class_0" / "0000.jpg").rename(root / "alone" / "0000.jpg")


def one_class(root):
    for name in ("class_1", "class_2", "class_3"):
        shutil.rmtree(root / name)


def with_a_pipe(root):
    os.mkfifo(root / "class_2" / "pipe.jpg")


def truncated(root):
    path = root / "class_2" / "0003.jpg"
    path.write_bytes(path.read_bytes()[:-200])


def another_format(root):
    made_images.picture(0, 0).save(root / "class_2" / "0003.jpg", "TIFF")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (empty_class, "class_9 holds no image"),
        (not_an_image, r"list\.csv is not an image by its name"),
        (nested, "more is a folder inside a class"),
        (with_a_pipe, r"pipe\.jpg is neither a file nor a folder; remove it"),
        (single, "class alone has a single image"),
        (one_class, "has 1 sub-folders; it must have at least two"),
        (truncated, r"class_2/0003\.jpg cannot be read: .*--skip_corrupt"),
        (another_format, r"class_2/0003\.jpg cannot be read: Unknown image file format"),
    ],
)
def test_a_folder_that_cannot_be_meant_is_refused_naming_what_is_wrong(own, damage, message):
    damage(own)
    with pytest.raises(ValueError, match=message):
        folder.load(small(own))


def test_skip_corrupt_leaves_out_and_counts_and_says_which(own, capsys):
    truncated(own)
    not_an_image(own)
    data = folder.load(small(own, skip_corrupt=True))
    # Where the folder lies is not said: a run may move with its data.
    assert sorted(data.skipped) == ["class_1/list.csv", "class_2/0003.jpg"]
    assert data.counts.sum() + len(data.test) == sum(COUNTS) - 1
    assert "skips 1 unreadable" in capsys.readouterr().out


def test_a_class_all_of_whose_images_are_unreadable_is_refused(own):
    for path in (own / "class_3").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="class_3 holds no readable image"):
        folder.load(small(own, skip_corrupt=True))


def test_parts_that_differ_in_their_classes_are_refused(parts):
    shutil.rmtree(parts / "val" / "class_1")
    with pytest.raises(ValueError, match="class class_1 of the training images is absent from"):
        folder.load(small(parts))
    shutil.copytree(parts / "train" / "class_1", parts / "val" / "class_1")
    shutil.copytree(parts / "train" / "class_1", parts / "val" / "extra")
    with pytest.raises(ValueError, match="extra is a class that has no training images"):
        folder.load(small(parts))
    shutil.rmtree(parts / "val" / "extra")
    (parts / "more").mkdir()
    with pytest.raises(ValueError, match=r"has more/ beside train/"):
        folder.load(small(parts))


def test_a_missing_data_dir_is_an_error_that_says_what_it_should_hold(tmp_path):
    with pytest.raises(ValueError, match="needs --data_dir, a folder with one sub-folder"):
        folder.load(small(""))
    with pytest.raises(ValueError, match="is not an existing folder"):
        folder.load(small(tmp_path / "nowhere"))


# ----------------------------------------------------------------------------- from end to end


def test_a_folder_is_trained_evaluated_exported_and_predicted_by_the_programs(
    pictures, tmp_path, capsys
):
    run, model = tmp_path / "run", tmp_path / "model"
    flags = ["--dataset=folder", f"--data_dir={pictures}", f"--run_dir={run}", "--image_size=32"]
    flags += ["--network=small_cnn", "--epochs=4", "--drop_at=0.75", "--batch_size=8"]
    flags += ["--optimizer=adam", "--learning_rate=0.01"]
    assert cli.main("train", flags) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["split"] == "validation"
    assert results["last"]["per_class_error"][0] < 100
    assert cli.main("evaluate", [f"--run_dir={run}"]) == 0
    assert json.loads(capsys.readouterr().out)["error"] == results["last"]["error"]
    assert cli.main("export", [f"--run_dir={run}", f"--output={model}"]) == 0
    capsys.readouterr()
    assert cli.main("predict", [f"--model={model}", str(pictures / "class_0" / "0001.jpg")]) == 0
    assert json.loads(capsys.readouterr().out)["label"].startswith("class_")


@pytest.mark.usefixtures("eagerly")
def test_a_finished_run_follows_its_images_and_takes_no_others(pictures, tmp_path):
    first = training.train(
        small(pictures, method="erm", epochs=1), tmp_path / "run", progress=False
    )
    moved = shutil.copytree(pictures, tmp_path / "moved")
    config = small(moved, method="erm", epochs=1)
    assert training.train(config, tmp_path / "run", progress=False) == first
    renamed = shutil.copytree(pictures, tmp_path / "renamed")
    (renamed / "class_0" / "0003.jpg").rename(renamed / "class_0" / "9.jpg")
    with pytest.raises(ValueError, match="on other data: its files differ from those"):
        training.train(small(renamed, method="erm", epochs=1), tmp_path / "run", progress=False)
    others = shutil.copytree(pictures, tmp_path / "others")
    for number in range(5):
        (others / "class_0" / f"000{number}.jpg").unlink()
    with pytest.raises(ValueError, match="on other data: its counts differ from those"):
        training.train(small(others, method="erm", epochs=1), tmp_path / "run", progress=False)
    assert RunFolder(tmp_path / "run").read_config().data_dir == str(moved)
    for number in range(5):
        (moved / "class_0" / f"000{number}.jpg").unlink()
    with pytest.raises(ValueError, match="on other data: its counts differ from those"):
        training.evaluate(tmp_path / "run")


def pixels_to_cosines(num_classes):
    images = keras.Input((32, 32, 3))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images))
    return keras.Model(images, CosineDense(num_classes)(x))


@pytest.mark.parametrize("batch_size", [8, 20])  # The last batch fills both shares, or the first.
def test_images_shared_out_over_two_devices_train_as_on_one(
    pictures, tmp_path, batch_size, monkeypatch
):
    # Without batch normalization, which sees a device's share only.
    monkeypatch.setattr(models, "build", lambda config, data: pixels_to_cosines(len(data.counts)))
    histories = []
    for strategy in ("none", "mirrored"):
        config = small(
            pictures,
            epochs=2,
            evaluate_every=2,
            batch_size=batch_size,
            strategy=strategy,
            drop_at=(0.5,),
        )
        with without_graphs() if strategy == "none" else contextlib.nullcontext():
            training.train(config, tmp_path / strategy, progress=False)
        with open(tmp_path / strategy / "history.csv", newline="") as rows:
            histories.append([float(row["loss"]) for row in csv.DictReader(rows)])
    np.testing.assert_allclose(*histories, rtol=1e-5)


def test_wrong_input_ends_the_program_with_one_sentence_and_exit_code_2(own, tmp_path, capsys):
    truncated(own)
    flags = ["--dataset=folder", f"--data_dir={own}", f"--run_dir={tmp_path / 'run'}"]
    assert cli.main("train", flags) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"train: {own}/class_2/0003.jpg cannot be read")


def test_the_recipe_defers_the_re_weighting_to_the_first_drop():
    config = load_recipe("folder", "ldam_drw").resolve()
    assert (config.epochs, config.drop_epochs, config.start_epoch) == (90, (60, 75), 60)
    assert config.imbalance == "none"


def test_pretrained_weights_that_the_network_cannot_use_are_refused(pictures):
    config = small(pictures, pretrained="w.h5")
    with pytest.raises(ValueError, match="`pretrained` goes with network resnet50"):
        models.build(config, folder.load(config))
    config = small(pictures, pretrained="nowhere.h5", network="resnet50")
    with pytest.raises(ValueError, match="`pretrained` must be an existing file"):
        models.build(config, folder.load(config))
