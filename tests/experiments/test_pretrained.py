"""Runs that start from a pretrained body: the body of a file, the head, what freezes."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import without_graphs

from keras_ldam import LDAM, AdversarialTraining, CosineDense
from keras_ldam.adjustment import with_probabilities
from keras_ldam.experiments import datasets, exporting, models, progress, training
from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets.data import Data, Split
from keras_ldam.experiments.models.pretrained import without_head
from keras_ldam.experiments.run_folder import RunFolder

WORDS = {"praise": "lovely superb", "complaint": "broken awful", "question": "where when"}
RANDOM = np.random.default_rng(0)
hub = pytest.mark.skipif(
    importlib.util.find_spec("keras_hub") is None, reason="keras-hub is not installed"
)


@pytest.fixture(scope="module")
def tickets(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "tickets.csv"
    counts = {"praise": 20, "complaint": 10, "question": 5}
    rows = [
        (f"{WORDS[name]} thing {name}{i}", name) for name, n in counts.items() for i in range(n)
    ]
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A classifier of texts into four other classes."""
    known = " ".join(WORDS.values()).split()
    model = keras.Sequential(
        [
            keras.Input((), dtype="string"),
            keras.layers.TextVectorization(vocabulary=known),
            keras.layers.Embedding(8, 6, mask_zero=True, name="words"),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(4, "softmax", name="old"),
        ]
    )
    path = tmp_path_factory.mktemp("body") / "encoder.keras"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def image_body(tmp_path_factory):
    """A body of images without a head, with batch normalization and dropout."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3, name="convolution"),
            layers.BatchNormalization(name="normalization"),
            layers.Dropout(0.5),
        ]
    )
    path = tmp_path_factory.mktemp("body") / "images.keras"
    model.save(path)
    return path


def of_texts(tickets, pretrained, **changes):
    values = {
        "dataset": "text",
        "imbalance": "none",
        "data_dir": str(tickets),
        "pretrained": str(pretrained),
        "epochs": 2,
        "drop_at": (0.5,),
        "batch_size": 8,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "head_epochs": 2,
    }
    return Config(**{**values, **changes}).resolve()


def of_images(pretrained, **changes):
    config = Config(dataset="folder", imbalance="none", pretrained=str(pretrained), **changes)
    labels = np.arange(12) % 3  # Each class has a color.
    pixels = (
        RANDOM.integers(0, 100, (12, 8, 8, 3)) + 100 * np.eye(3, dtype=int)[labels][:, None, None]
    )
    images = Split(pixels.astype(np.uint8), labels)
    return config.resolve(), Data("made", ("a", "b", "c"), images, images)


class KilledError(Exception):
    """Stands for the end of a process."""


# ----------------------------------------------------------------------------- the body of a model


def small(*after):
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, "relu", name="kept"), *after])


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (small(keras.layers.Dense(3, name="head")), "head"),
        (small(keras.layers.Dense(3, "softmax", name="head")), "head"),
        (small(keras.layers.Dense(3, name="head"), keras.layers.Softmax()), "head"),
        (small(keras.layers.Dense(1, name="head"), keras.layers.Activation("sigmoid")), "head"),
        (with_probabilities(small(CosineDense(3, scale=9.0, name="head"))), "head"),
        (keras.Sequential([keras.Input((5,)), small(keras.layers.Dense(3, name="in"))]), "in"),
        (small(), None),
        (small(keras.layers.Dropout(0.5), keras.layers.Activation("relu")), None),
    ],
    ids=["linear", "softmax", "softmax layer", "sigmoid", "cosine", "nested", "relu", "none"],
)
def test_the_body_is_all_before_a_last_layer_of_class_scores(model, head):
    body, left_out = without_head(model)
    assert left_out == head
    assert body.output_shape == (None, 4)
    features = small()
    kept = next(each for each in body._flatten_layers() if each.name == "kept")
    features.set_weights(kept.get_weights())
    x = RANDOM.normal(size=(2, 5)).astype("float32")
    np.testing.assert_allclose(body(x), features(x), rtol=1e-6)


@pytest.mark.parametrize("frozen", ["batch_norm", "body", "none"])
def test_what_is_frozen_does_not_change_in_training(image_body, frozen):
    config, data = of_images(image_body, frozen=frozen)
    model = models.build(config, data)
    model.compile(keras.optimizers.SGD(0.1), loss=LDAM(data.counts), run_eagerly=True)
    body = model.get_layer("body")
    before = [weights.numpy() for weights in body.weights]
    model.train_on_batch(data.train.examples, data.train.labels)
    same = [np.array_equal(a, b) for a, b in zip(before, body.weights, strict=True)]
    # Kernel and bias of the convolution; scale, shift and statistics of the normalization.
    expected = {"batch_norm": [0, 0, 1, 1, 1, 1], "body": [1] * 6, "none": [0] * 6}
    assert len(same) >= 6 and same[:6] == [bool(each) for each in expected[frozen]]


# ----------------------------------------------------------------------------- the head's start


def test_a_cosine_head_starts_from_class_means_and_is_trained_alone(image_body):
    config, data = of_images(image_body, head_epochs=0)
    model = models.build(config, data)
    x, y = data.train.examples, data.train.labels
    body = keras.Model(model.inputs, model.get_layer("pooled").output)
    training._train_head(config, data, model)
    units = keras.utils.normalize(body.predict_on_batch(x), axis=-1)
    means = keras.utils.normalize(np.stack([units[y == j].mean(axis=0) for j in range(3)]))
    np.testing.assert_allclose(model.get_layer("cosines").kernel, means.T, atol=1e-5)
    before = [weights.numpy() for weights in body.weights]
    config, _ = of_images(image_body, head_epochs=2)
    training._train_head(config, data, model)
    assert np.abs(model.get_layer("cosines").kernel - means.T).max() > 1e-3
    for one, other in zip(before, body.weights, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("eagerly")
def test_texts_are_trained_exported_and_resumed_where_the_run_was_killed(
    tickets, encoder, tmp_path, monkeypatch
):
    tf = pytest.importorskip("tensorflow")
    config = of_texts(tickets, encoder)
    results = training.train(config, tmp_path / "whole", progress=False)
    assert results["parameters"] == 8 * 6 + 6 * 3  # Word vectors, and a head of three classes.
    folder = exporting.export(tmp_path / "whole", tmp_path / "served")["folder"]
    served = tf.saved_model.load(folder).signatures["serving_default"]
    answer = served(text=tf.constant(["superb lovely"]))["label"].numpy()
    assert answer.tolist() == [b"praise"]
    assert "Only the last" not in (Path(folder) / "model_card.md").read_text()

    trained_heads = []
    train_head, write = training._train_head, progress.Progress._write_checkpoint

    def killed(record, epoch):
        write(record, epoch)
        raise KilledError

    monkeypatch.setattr(
        training, "_train_head", lambda *args: trained_heads.append(train_head(*args))
    )
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(progress.Progress, "_write_checkpoint", killed)
        training.train(config, tmp_path / "cut", progress=False)
    training.train(config, tmp_path / "cut", progress=False)
    assert len(trained_heads) == 1
    whole, cut = (RunFolder(tmp_path / name).load_model() for name in ("whole", "cut"))
    for one, other in zip(whole.get_weights(), cut.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_lora_resumes_from_its_factors_and_ends_in_the_kernels(tickets, encoder, tmp_path):
    config = of_texts(tickets, encoder, lora=2, epochs=4, learning_rate=0.05, head_epochs=0)
    with without_graphs():
        results = training.train(config, tmp_path / "whole", progress=False)
    assert results["parameters"] == 8 * 6 + 6 * 3
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
        write = progress.Progress._write_checkpoint

        def killed(record, epoch):
            write(record, epoch)
            raise KilledError

        patch.setattr(progress.Progress, "_write_checkpoint", killed)
        with without_graphs():
            training.train(config, tmp_path / "cut", progress=False)
    with without_graphs():
        training.train(config, tmp_path / "cut", progress=False)
    whole, cut = (RunFolder(tmp_path / name).load_model() for name in ("whole", "cut"))
    for one, other in zip(whole.get_weights(), cut.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    before = keras.models.load_model(encoder).get_layer("words").get_weights()[0]
    (after,) = [weights for weights in whole.get_weights() if weights.shape == (8, 6)]
    sizes = np.linalg.svd(after - before, compute_uv=False)
    assert sizes[1] > 1e-3 and sizes[2] < 1e-5


def test_under_lora_a_body_learns_additions_and_biases_alone(image_body):
    config, data = of_images(image_body, lora=3)
    model = models.build(config, data)
    model.compile(keras.optimizers.SGD(0.1), loss=LDAM(data.counts))
    assert {weights.path for weights in model.trainable_weights} == {
        "convolution/bias",
        "convolution/lora_kernel_a",
        "convolution/lora_kernel_b",
        "cosines/kernel",
    }
    normalization = model.get_layer("body").get_layer("normalization")
    before = normalization.get_weights()
    model.train_on_batch(data.train.examples, data.train.labels)
    for one, other in zip(before, normalization.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_lora_is_refused_where_nothing_offers_it(tmp_path):
    keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255)]).save(
        tmp_path / "body.keras"
    )
    config, data = of_images(tmp_path / "body.keras", lora=2)
    with pytest.raises(ValueError, match=r"`lora` needs .* and a body of .*Rescaling"):
        models.build(config, data)
    with pytest.raises(ValueError, match="`lora` must be 0 without `pretrained`"):
        of_images("", lora=2)
    with pytest.raises(ValueError, match=r"`lora` must be 0 .* frozen='body'"):
        of_images("body.keras", lora=2, frozen="body")


# ----------------------------------------------------------------------------- what is refused


def damaged(path, kind):
    """A file or folder that is no body for texts."""
    if kind == "no model":
        path.write_bytes(b"PK nothing")
    elif kind == "weights":
        path = path.with_name("only.weights.h5")
        small().save_weights(path)
    elif kind == "ids":
        keras.Sequential(
            [keras.Input((None,)), keras.layers.Embedding(5, 4), keras.layers.LSTM(3)]
        ).save(path)
    elif kind == "two inputs":
        one, other = keras.Input((2,)), keras.Input((2,))
        keras.Model([one, other], keras.layers.Add()([one, other])).save(path)
    return path


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("nothing", "`pretrained` must be an existing file, .keras or .h5, or a preset folder"),
        ("no model", "`pretrained` must hold a Keras model, .keras or .h5. Received: .*body.keras"),
        ("weights", "`pretrained` must hold a whole model, .* not its weights alone"),
        ("ids", "must take texts of shape .*; put its TextVectorization.* float32 of shape"),
        ("two inputs", "with one input and one output. Received: .* 2 inputs"),
    ],
)
def test_what_is_no_body_for_texts_is_refused_in_one_sentence(tickets, tmp_path, kind, sentence):
    config = of_texts(tickets, damaged(tmp_path / "body.keras", kind))
    with pytest.raises(ValueError, match=sentence):
        models.build(config, datasets.load(config))


def test_images_of_another_size_or_kind_than_the_body_takes_are_refused(image_body, encoder):
    config, data = of_images(image_body)
    larger = Split(np.zeros((3, 9, 9, 3), np.uint8), np.arange(3))
    with pytest.raises(ValueError, match=r"of shape \(9, 9, 3\), uint8; pass image_size=8"):
        models.build(config, Data("made", ("a", "b", "c"), larger, larger))
    config, data = of_images(encoder)
    with pytest.raises(ValueError, match=r"must take images .* which takes string of shape"):
        models.build(config, data)
    config, data = of_images(image_body, network="small_cnn")
    with pytest.raises(ValueError, match="goes with network resnet50, or with an empty `network`"):
        models.build(config, data)


# ----------------------------------------------------------------------------- keras-hub


@pytest.fixture(scope="module")
def bert():
    """Backbone and preprocessor, small and random."""
    import keras_hub

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *" ".join(WORDS.values()).split()]
    tokenizer = keras_hub.models.BertTokenizer(tokens, lowercase=True)
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=8)
    backbone = keras_hub.models.BertBackbone(
        len(tokens), num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8
    )
    return keras_hub, backbone, preprocessor


@hub
def test_a_preset_folder_is_trained_on_texts_and_refused_for_images(bert, tickets, tmp_path):
    _, backbone, preprocessor = bert
    backbone.save_to_preset(tmp_path / "preset")
    config = of_texts(tickets, tmp_path / "preset")
    with pytest.raises(ValueError, match="keras-hub with tokenizer and backbone"):
        models.build(config, datasets.load(config))
    preprocessor.save_to_preset(tmp_path / "preset")
    results = training.train(config, tmp_path / "run", progress=False)
    again = training.evaluate(tmp_path / "run")
    assert again["mean_error"] == pytest.approx(results["last"]["mean_error"])
    config, data = of_images(tmp_path / "preset")
    with pytest.raises(ValueError, match=r"for images. Received: .* BertBackbone for texts"):
        models.build(config, data)


@hub
def test_a_classifier_of_keras_hub_trains_with_ldam_as_it_is(bert):
    hub, backbone, preprocessor = bert
    texts, labels = [" ".join(WORDS.values())] * 4, np.array([0, 0, 1, 2])
    model = hub.models.BertTextClassifier(backbone, num_classes=3, preprocessor=preprocessor)
    model.compile("adam", loss=LDAM([2, 1, 1]), metrics=["sparse_categorical_accuracy"])
    history = model.fit(np.array(texts), labels, batch_size=4, shuffle=False, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    adversarial = AdversarialTraining(model, epsilon=0.5)
    adversarial.compile("adam", loss=LDAM([2, 1, 1]))
    ids = preprocessor(texts)
    history = adversarial.fit(ids, labels, batch_size=4, shuffle=False, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
