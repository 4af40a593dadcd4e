"""CIFAR as TFDS prepares it."""

import numpy as np
import pytest

import keras_ldam
from keras_ldam.config import load_recipe
from keras_ldam.datasets import cifar, imbalance, prepared


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
    images, labels = cifar._read(Source(), "train")
    assert labels.tolist() == [10, 11, 12]
    assert images.ravel().tolist() == [0, 1, 2]


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "classes", "total"), [("cifar10", 10, 12406)])
def test_the_real_images_are_kept_by_the_official_rule(name, classes, total):
    import tensorflow_datasets as tfds

    if not tfds.builder(name).is_prepared():
        pytest.skip(f"TFDS has not prepared {name}")
    config = load_recipe(name, "erm").resolve()
    data = cifar.load(config)
    assert data.counts.tolist() == keras_ldam.long_tailed_counts(classes, 5000, 100).tolist()
    assert len(data.train) == total
    assert np.bincount(data.test.labels).tolist() == [1000] * classes
    images, labels = cifar._read(prepared.builder(name, ""), "train")
    kept = imbalance.imbalanced_indices(labels, data.counts, seed=0)
    np.testing.assert_array_equal(data.train.examples, images[kept])
