"""CIFAR as TFDS prepares it."""

import dataclasses
import importlib
import json
import pickle

import numpy as np
import pytest

import keras_ldam
from keras_ldam.experiments import datasets
from keras_ldam.experiments.datasets import cifar, imbalance
from keras_ldam.experiments.recipes import load_recipe


class Source:
    """A builder whose records come in another order than the files."""

    def as_dataset(self, split, **settings):
        ids = [b"train_00002", b"train_00000", b"train_00001"]
        return {
            "id": np.array(ids),
            "image": np.array([2, 0, 1], np.uint8)[:, None, None, None],
            "label": np.array([12, 10, 11]),
        }


def test_examples_are_read_in_the_order_of_the_original_files(monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds, "as_numpy", lambda records: records)
    split = cifar._read_prepared(Source(), "train")
    assert split.labels.tolist() == [10, 11, 12]
    assert split.examples.ravel().tolist() == [0, 1, 2]


def write_archive(folder, name):
    """A small archive of the original layout, 20 images a class; returns its pixels and labels."""
    fine = name == "cifar100"
    classes = 100 if fine else 10
    inside = folder / ("cifar-100-python" if fine else "cifar-10-batches-py")
    inside.mkdir()
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.arange(20 * classes) % classes)
    pixels = generator.integers(0, 256, size=(len(labels), 3072), dtype=np.uint8)

    def write(file, values):
        (inside / file).write_bytes(pickle.dumps(values, protocol=2))

    key = "fine_labels" if fine else "labels"
    train = ["train"] if fine else [f"data_batch_{i}" for i in range(1, 6)]
    for file, at in zip(train, np.array_split(np.arange(len(labels)), len(train)), strict=True):
        write(file, {"data": pixels[at], key: labels[at].tolist()})
    write("test" if fine else "test_batch", {"data": pixels[:50], key: labels[:50].tolist()})
    names = {("fine_label_names" if fine else "label_names"): [f"c{j}" for j in range(classes)]}
    write("meta" if fine else "batches.meta", names)
    return pixels, labels


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_original_archive_is_read_in_the_order_of_its_files(name, tmp_path):
    pixels, labels = write_archive(tmp_path, name)
    config = load_recipe(name, "erm")
    config = dataclasses.replace(config, data_dir=str(tmp_path), imbalance="none").resolve()
    data = datasets.load(config)
    assert data.class_names[3] == "c3"
    np.testing.assert_array_equal(data.test.labels, labels[:50])
    # Red, green and blue planes, each by rows.
    np.testing.assert_array_equal(data.test.examples[7, 2, 5], pixels[7, [69, 1093, 2117]])
    assert data.counts.tolist() == [20] * len(data.class_names)


def test_a_pickle_that_is_no_archive_is_refused_before_it_runs(tmp_path):
    write_archive(tmp_path, "cifar10")
    bad = tmp_path / "cifar-10-batches-py" / "batches.meta"
    bad.write_bytes(pickle.dumps(print))
    config = dataclasses.replace(load_recipe("cifar10", "erm"), data_dir=str(tmp_path)).resolve()
    with pytest.raises(ValueError, match=r"batches.meta cannot be read .*print"):
        datasets.load(config)


TRAIN = """
import sys
from keras_ldam.experiments import cli, models
from keras_ldam.experiments.models.small_cnn import small_cnn
# ResNet-32 takes a minute to compile; what is tried here is all that stands around it.
models.build = lambda config, data: small_cnn(
    head=models.head(config, len(data.class_names)), input_shape=(32, 32, 3)
)
sys.exit(cli.main("train", sys.argv[1:]))
"""


def test_training_on_jax_needs_no_tensorflow(on_jax, tmp_path):
    write_archive(tmp_path, "cifar10")
    flags = ["--dataset=cifar10", f"--data_dir={tmp_path}", "--imbalance_ratio=10", "--smoke"]
    done = on_jax(TRAIN, *flags, f"--run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "DRW on, class weights" in done.stderr
    assert json.loads(done.stdout)["last"]["epoch"] == 1
    assert "tensorflow" not in json.loads((tmp_path / "run" / "results.json").read_text())


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "classes", "total"), [("cifar10", 10, 12406)])
def test_the_real_images_are_kept_by_the_official_rule(name, classes, total, monkeypatch):
    import tensorflow_datasets as tfds

    if not tfds.builder(name).is_prepared():
        pytest.skip(f"TFDS has not prepared {name}")
    read, seen = cifar._read_prepared, {}
    monkeypatch.setattr(
        cifar, "_read_prepared", lambda source, split: seen.setdefault(split, read(source, split))
    )
    config = load_recipe(name, "erm").resolve()
    data = datasets.load(config)
    assert data.counts.tolist() == keras_ldam.long_tailed_counts(classes, 5000, 100).tolist()
    assert len(data.train) == total
    assert np.bincount(data.test.labels).tolist() == [1000] * classes
    everything = seen["train"]
    kept = imbalance.imbalanced_indices(everything.labels, data.counts, seed=0)
    np.testing.assert_array_equal(data.train.examples, everything.examples[kept])


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_training_files_are_read_one_after_the_other_as_int32_labels(name, tmp_path):
    pixels, labels = write_archive(tmp_path, name)
    archive = importlib.import_module(f"keras_ldam.experiments.datasets.{name}").ARCHIVE
    folder = tmp_path / archive.folder
    split = cifar._read_archive(folder, archive.files["train"], archive.labels)
    np.testing.assert_array_equal(split.labels, labels)
    assert (split.examples.dtype, split.labels.dtype) == (np.uint8, np.int32)
    np.testing.assert_array_equal(split.examples[:, 2, 5, 1], pixels[:, 1024 + 69])


def test_labels_from_tfds_are_int32(monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds, "as_numpy", lambda records: records)
    assert cifar._read_prepared(Source(), "train").labels.dtype == np.int32


def test_validation_images_come_out_of_the_training_files(tmp_path):
    write_archive(tmp_path, "cifar10")
    config = dataclasses.replace(
        load_recipe("cifar10", "erm"),
        data_dir=str(tmp_path), imbalance_ratio=4.0, validation_fraction=0.25,
    ).resolve()  # fmt: skip
    data = datasets.load(config)
    counts = keras_ldam.long_tailed_counts(10, 20, 4.0)
    assert data.test_name == "validation"
    assert len(data.train) + len(data.test) == counts.sum()
    both = np.concatenate([data.train.labels, data.test.labels])
    assert np.bincount(both).tolist() == counts.tolist()
    train = {image.tobytes() for image in data.train.examples}
    assert not any(image.tobytes() in train for image in data.test.examples)


@pytest.mark.parametrize("function", [np.load, np.savetxt])
def test_a_pickle_that_calls_numpy_is_refused_too(function, tmp_path):
    write_archive(tmp_path, "cifar10")
    bad = tmp_path / "cifar-10-batches-py" / "batches.meta"
    bad.write_bytes(pickle.dumps(function))
    config = dataclasses.replace(load_recipe("cifar10", "erm"), data_dir=str(tmp_path)).resolve()
    with pytest.raises(ValueError, match=rf"cannot be read .*numpy\.{function.__name__}, which no"):
        datasets.load(config)
