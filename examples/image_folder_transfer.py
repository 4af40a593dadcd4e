"""
Title: An image folder and a pretrained network
Description: Few images of rare classes, and a body that has learned from others.
Accelerator: None
"""

"""
## Introduction

A folder has one sub-folder of images for each class, and of some classes there are four. A network
that was trained on other images has most of what is needed already: it gets a new head, and
training continues. This example compares three ways:

- **from random weights**, plain: what the pretrained body is worth;
- **without**: the pretrained body, a `Dense` head, cross-entropy;
- **with**: the pretrained body, a cosine head that starts from the class means, and LDAM-DRW.

So that nothing is downloaded, the images are scikit-learn's handwritten digits. The body is trained
on the digits 0 to 4, of which there are many; the folder holds 5 to 9, with a long tail.
"""

import os
import pathlib
import tempfile

import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_ldam
from keras_ldam import hardware

SMOKE = bool(os.environ.get("SMOKE"))  # Set by the tests: one short run.
SEEDS = 1 if SMOKE else 3
EPOCHS = 2 if SMOKE else 30
COUNTS = [10, 9, 7, 5, 4] if SMOKE else [100, 45, 20, 9, 4]
TEST = 6 if SMOKE else 60
NAMES = ["5", "6", "7", "8", "9"]

"""
## The folder

`train/` has as many images of each class as `COUNTS` says, `test/` has 60 of each. The seed chooses
which.
"""

digits, classes = load_digits(return_X_y=True)
digits = (digits.reshape(-1, 8, 8, 1) * 15.9).astype("uint8").repeat(2, axis=1).repeat(2, axis=2)


def write_folder(root, seed):
    rng = np.random.default_rng(seed)
    for name, count in zip(NAMES, COUNTS, strict=True):
        chosen = rng.permutation(np.flatnonzero(classes == int(name)))[: TEST + count]
        for place, index in enumerate(chosen):
            folder = root / ("test" if place < TEST else "train") / name
            folder.mkdir(parents=True, exist_ok=True)
            keras.utils.save_img(folder / f"{index}.png", digits[index], scale=False)


def read_folder(root):
    """Images and labels; a larger folder would stay a dataset."""
    dataset = keras.utils.image_dataset_from_directory(
        root, color_mode="grayscale", image_size=(16, 16), shuffle=False, verbose=False
    )
    x, y = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.concatenate(x), np.concatenate(y)


"""
## The pretrained body

Take one from `keras.applications` or keras-hub instead, and keep it without its head.
"""


def body():
    layers = [keras.Input((16, 16, 1)), keras.layers.Rescaling(1 / 255)]
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        layers.append(keras.layers.Conv2D(filters, 3, stride, padding="same", use_bias=False))
        layers += [keras.layers.BatchNormalization(), keras.layers.ReLU()]
    return keras.Sequential([*layers, keras.layers.GlobalAveragePooling2D()])


def pretrained():
    keras.utils.set_random_seed(0)
    known = body()
    model = keras.Sequential([known, keras.layers.Dense(5)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss=loss)
    first = np.flatnonzero(classes < 5)[: 64 if SMOKE else None]
    model.fit(digits[first], classes[first], epochs=1 if SMOKE else 15, verbose=0)
    return known.get_weights()


"""
## The three ways

Batch normalization keeps the statistics of pretraining: four images say little about them. With
`trainable = False` Keras uses them as they are.

The class means are where a cosine head starts: `start_from_means` reads the training images once.
"""

WEIGHTS = pretrained()


def trained(way, x, y, seed):
    keras.utils.set_random_seed(seed)
    counts, inside, callbacks = keras_ldam.count(y), body(), []
    if way != "random weights":
        inside.set_weights(WEIGHTS)
        for layer in inside.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False
    if way == "with LDAM-DRW":
        model = keras.Sequential([inside, keras_ldam.CosineDense(len(counts))])
        keras_ldam.start_from_means(model, (x, y))
        loss = keras_ldam.LDAM(counts)
        callbacks = [keras_ldam.DRW(start=0.8, verbose=0)]
    else:
        model = keras.Sequential([inside, keras.layers.Dense(len(counts))])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rate = keras.optimizers.schedules.CosineDecay(1e-3, EPOCHS * -(-len(x) // 16))
    model.compile(keras.optimizers.Adam(rate), loss=loss)
    model.fit(x, y, batch_size=16, epochs=EPOCHS, verbose=0, callbacks=callbacks)
    return model


"""
## Results
"""

found = {"random weights": [], "without": [], "with LDAM-DRW": []}
for seed in range(SEEDS):
    with tempfile.TemporaryDirectory() as folder:
        write_folder(pathlib.Path(folder), seed)
        x, y = read_folder(f"{folder}/train")
        x_test, y_test = read_folder(f"{folder}/test")
    for way, errors in found.items():
        guesses = trained(way, x, y, seed).predict(x_test, verbose=0).argmax(axis=-1)
        each = [100 * np.mean(guesses[y_test == j] != j) for j in range(len(NAMES))]
        errors.append([*each[3:], np.mean(each)])

print(f"| pretrained body | {COUNTS[3]} images | {COUNTS[4]} images | mean of 5 classes |")
print("|---|---|---|---|")
for way, errors in found.items():
    cells = [
        f"{mean:.1f} ± {deviation:.1f}"
        for mean, deviation in zip(
            np.mean(errors, axis=0), np.std(errors, axis=0, ddof=SEEDS > 1), strict=True
        )
    ]
    print(f"| {way} | {' | '.join(cells)} |")
print(f"\nErrors in percent, n = {SEEDS} seeds; {hardware.made_with()}.")

"""
## What came of it

The pretrained body alone helps the mean and hardly the rarest class; with class means and LDAM-DRW
the errors of both rare classes fall by more than a third. Four images are still few.
"""
