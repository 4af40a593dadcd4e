"""
Title: Train, export, serve, ask
Description: From long-tailed digits to a SavedModel that answers over HTTP without this library.
Accelerator: None
"""

"""
## Introduction

A model is trained twice, without and with LDAM-DRW, exported as a SavedModel that takes PNG
files, and asked in three ways. The images are scikit-learn's handwritten digits, 8×8 pixels, of
which the rare ones are thinned out.

Exports need Keras' TensorFlow backend: `pip install ".[export]"`.
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import tempfile
from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_ldam
from keras_ldam import hardware

SMOKE = bool(os.environ.get("SMOKE"))  # Set by the tests: one short run.
SEEDS = 1 if SMOKE else 3
EPOCHS = 2 if SMOKE else 30

"""
## Data

50 images of each digit are kept for the test. Of the rest, 120 zeros are used for training, and
progressively fewer of each digit, down to 6 nines. Pixels go from 0 to 255, as files have them.
"""

largest = 24 if SMOKE else 120
counts = keras_ldam.long_tailed_counts(10, max_count=largest, imbalance_ratio=20)


def long_tailed_digits(seed):
    digits = load_digits()
    images = (digits.images * (255 / 16)).astype("uint8")[..., None]
    order = np.random.default_rng(seed).permutation(len(images))
    images, labels = images[order], digits.target[order]
    test = np.concatenate([np.flatnonzero(labels == j)[:50] for j in range(10)])
    train = np.concatenate([np.flatnonzero(labels == j)[50 : 50 + counts[j]] for j in range(10)])
    return (images[train], labels[train]), (images[test], labels[test])


"""
## Models

`Rescaling` belongs to the model, so whoever asks it sends pixels as they are.
"""


def trained(way, train, seed):
    keras.utils.set_random_seed(seed)
    if way == "without":
        head, loss, callbacks = keras.layers.Dense(10), keras_ldam.CrossEntropy(counts), []
    else:
        head, loss = keras_ldam.CosineDense(10), keras_ldam.LDAM(counts)
        callbacks = [keras_ldam.DRW(start=0.8, verbose=0)]
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, "relu"),
            head,
        ]
    )
    model.compile(keras.optimizers.Adam(1e-3), loss=loss)
    model.fit(*train, batch_size=32, epochs=EPOCHS, verbose=0, callbacks=callbacks)
    return model


print("| | error, all digits | error, three rarest digits |")
print("|---|---|---|")
for way in ("without", "with LDAM-DRW"):
    found = []
    for seed in range(SEEDS):
        train, (x, y) = long_tailed_digits(seed)
        model = trained(way, train, seed)
        wrong = model.predict(x, batch_size=500, verbose=0).argmax(axis=1) != y
        found.append([100 * wrong.mean(), 100 * wrong[y >= 7].mean()])
    cells = [
        f"{mean:.1f} ± {deviation:.1f}"
        for mean, deviation in zip(
            np.mean(found, axis=0), np.std(found, axis=0, ddof=SEEDS > 1), strict=True
        )
    ]
    print(f"| {way} | {' | '.join(cells)} |")
print(f"\nPercent of balanced test data, n = {SEEDS} seeds; {hardware.made_with()}.\n")

"""
## Export

The last model, that of LDAM-DRW. The graph holds decoding, the model, the scale of the softmax,
and the class names; margins and class weights stay behind. `model_card.md` beside it says what it
is.
"""

names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
folder = Path(tempfile.mkdtemp()) / "digits"
version = keras_ldam.export_saved_model(model, folder, class_names=names)
print("exported:", ", ".join(sorted(path.name for path in version.iterdir())))

"""
## Ask it in Python

TensorFlow alone is enough: nothing of Keras or keras_ldam is needed where it is served.
"""

import tensorflow as tf

served = tf.saved_model.load(str(version))
answer = served.signatures["serving_default"](image=tf.constant(x[-1:]))
print("a test image of a nine:", answer["label"].numpy()[0].decode())

"""
## Ask it line by line

The program `bin/predict --model …/digits` reads paths of image files and writes JSON; this is
what it does inside.
"""

from keras_ldam.serving.predictor import Predictor

files = []
for j in range(10):
    file = folder.parent / f"{j}.png"
    keras.utils.save_img(file, x[50 * j], scale=False)
    files.append(str(file).encode())
for answer in Predictor(folder).predict(files, probabilities=False):
    print(answer["line"] - 1, answer["label"], round(answer["probability"], 2))

"""
## Serve it over HTTP

        .venv-serving/bin/python bin/serve --model …/digits
    echo '{"signature_name": "serving_bytes",
          "instances": [{"b64": "'$(base64 -w0 9.png)'"}]}' | curl -d @- \\
        localhost:8501/v1/models/digits:predict

TensorFlow Serving takes the same folder and the same request.
"""
