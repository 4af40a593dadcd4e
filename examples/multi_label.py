"""
Title: Several labels, some of them rare
Description: Pictures with several digits, long-tailed labels and unknown answers, with LDAM-DRW.
Accelerator: None
"""

"""
## Introduction

A chest X-ray shows any of a dozen findings, or none; a photograph has any of a hundred tags. Each
label is a question of its own, answered yes or no, and for a rare label nearly all answers are no.
A network that says no to it always is right 99 times in 100.

Here each picture holds up to four handwritten digits, and the labels say which digits occur. The
digits are real (they come with scikit-learn), the pictures are made of them below, so that the last
labels are rare. One answer in ten is unknown, as in many sets of X-rays, and written as -1.

The same network is trained with four losses: binary cross-entropy, the same with class-balanced
weights, the asymmetric focal loss, and LDAM-DRW with a margin for each label and side.
"""

import os

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score

import keras_ldam
from keras_ldam import hardware

SMOKE = bool(os.environ.get("SMOKE"))  # Set by the tests: one short run.
SEEDS = 1 if SMOKE else 3
EPOCHS = 2 if SMOKE else 40
WAYS = ["without", "class-balanced weights", "asymmetric focal", "with LDAM-DRW"]
UNKNOWN = -1

"""
## Data

Half of the digits are for training, half for testing. A picture has four places, each empty or
with a digit; how often a digit is drawn falls from the zeros to the nines, for testing as for
training.
"""


def pictures(digits, n, rng):
    images, numbers = digits
    frequency = 0.6 ** np.arange(10)
    drawn = rng.choice(10, size=(n, 4), p=frequency / frequency.sum())
    empty = rng.random((n, 4)) < 0.4
    x, y = np.zeros((n, 16, 16, 1), "float32"), np.zeros((n, 10), int)
    for picture, label, digits_here, empty_here in zip(x, y, drawn, empty, strict=True):
        for place, digit in enumerate(digits_here):
            if not empty_here[place]:
                row, column = 8 * (place // 2), 8 * (place % 2)
                image = images[rng.choice(np.flatnonzero(numbers == digit))]
                picture[row : row + 8, column : column + 8, 0] = image / 16
                label[digit] = 1
    return x + rng.normal(0, 0.3, size=x.shape).astype("float32"), y


def data(seed):
    rng = np.random.default_rng(seed)
    images, numbers = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8)
    training = np.random.default_rng(0).permutation(len(images)) < len(images) // 2
    x, y = pictures((images[training], numbers[training]), 300 if SMOKE else 3000, rng)
    x_test, y_test = pictures((images[~training], numbers[~training]), 600 if SMOKE else 3000, rng)
    return (x, np.where(rng.random(y.shape) < 0.1, UNKNOWN, y)), (x_test, y_test)


"""
## Models

`count` gives negatives and positives of each label; from their shape the losses know that the
labels do not exclude each other. What is unknown counts nowhere.
"""


def trained(way, x, y, seed):
    keras.utils.set_random_seed(seed)
    counts = keras_ldam.count(y, multi_label=True, ignore_class=UNKNOWN)
    counts = np.maximum(counts, 1)  # In the short run a digit may not occur at all.
    head, callbacks = keras.layers.Dense(10), []
    if way == "with LDAM-DRW":
        head = keras_ldam.CosineDense(10)
        loss = keras_ldam.LDAM(counts, ignore_class=UNKNOWN)
        callbacks = [keras_ldam.DRW(start=0.8, verbose=0)]
    elif way == "asymmetric focal":
        loss = keras_ldam.AsymmetricFocal(ignore_class=UNKNOWN)
    else:
        loss = keras_ldam.CrossEntropy(counts, ignore_class=UNKNOWN)
        if way == "class-balanced weights":
            loss.class_weights.assign(keras_ldam.class_weights(counts))
    model = keras.Sequential(
        [
            keras.Input((16, 16, 1)),
            keras.layers.Conv2D(24, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Conv2D(48, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(64, "relu"),
            head,
        ]
    )
    model.compile(keras.optimizers.Adam(1e-3), loss=loss)
    model.fit(x, y, batch_size=64, epochs=EPOCHS, verbose=0, callbacks=callbacks)
    return model, counts


"""
## Measures

The mean average precision over the labels depends on the order of the scores alone; the balanced
error is that of the answers at the score 0, the mean of missed positives and false alarms, label by
label. Both once more over the rare labels, those with fewer than 100 positives.
"""


def measures(model, counts, x, y):
    scores = model.predict(x, batch_size=1000, verbose=0)
    precision = 100 * average_precision_score(y, scores, average=None)
    missed = [np.mean(scores[y[:, j] == 1, j] <= 0) for j in range(10)]
    alarms = [np.mean(scores[y[:, j] == 0, j] > 0) for j in range(10)]
    error = 50 * (np.array(missed) + alarms)
    rare = counts[:, 1] < 100
    return [precision.mean(), precision[rare].mean(), error.mean(), error[rare].mean()]


"""
## Results
"""

print("| | mean average precision | rare labels | balanced error | rare labels |")
print("|---|---|---|---|---|")
for way in WAYS[::3] if SMOKE else WAYS:
    found = []
    for seed in range(SEEDS):
        (x, y), (x_test, y_test) = data(seed)
        found.append(measures(*trained(way, x, y, seed), x_test, y_test))
    cells = [
        f"{mean:.1f} ± {deviation:.1f}"
        for mean, deviation in zip(
            np.mean(found, axis=0), np.std(found, axis=0, ddof=SEEDS > 1), strict=True
        )
    ]
    print(f"| {way} | {' | '.join(cells)} |")
print(f"\nPercent, n = {SEEDS} seeds; {hardware.made_with()}.")

"""
## What came of it

LDAM-DRW has the lowest balanced error, of all labels and of the rare ones, and class-balanced
weights alone come close: the answers at the score 0 no longer follow the frequencies. The order of
the scores does not get better. The mean average precision stays within its spread, and is highest
with the asymmetric focal loss, which knows no frequencies. So where you choose a threshold for each
label on held-out data anyway, begin with that one; for a threshold without held-out examples, or
for answers that must not favor the frequent side, take LDAM-DRW.
"""
