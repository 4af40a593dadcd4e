"""
Title: Rare frauds in a table
Description: A binary table with 1% of positives: plain training, class weights, and LDAM-DRW.
Accelerator: None
"""

"""
## Introduction

One transaction in a hundred is a fraud. A network that is trained as usual gets 99% right by
calling nothing a fraud. This example trains the same network in three ways and looks at each
class by itself:

- **without**: cross-entropy as it is;
- **class_weight**: Keras' argument of `fit`, the usual remedy;
- **with LDAM-DRW**: margins by class, and weights in the last fifth of the training.

The data are made by scikit-learn, so nothing is downloaded. A few labels in a thousand are noise.
"""

import os

import keras
import numpy as np
from sklearn.datasets import make_classification
from sklearn.metrics import average_precision_score, roc_auc_score

import keras_ldam
from keras_ldam import hardware

SMOKE = bool(os.environ.get("SMOKE"))  # Set by the tests: one short run.
SEEDS = 1 if SMOKE else 3
EPOCHS = 2 if SMOKE else 20

"""
## Data

Each seed divides one population, 1% of it frauds, into two halves. Columns are standardized with
the statistics of the training set.
"""


def transactions(seed):
    x, y = make_classification(
        n_samples=1_000 if SMOKE else 40_000,
        n_features=20,
        n_informative=8,
        n_clusters_per_class=4,
        weights=[0.99],
        flip_y=0.002,
        class_sep=1.5,
        random_state=0,
    )
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = x[order], y[order]
    half = len(x) // 2
    mean, deviation = x[:half].mean(axis=0), x[:half].std(axis=0)
    x = ((x - mean) / deviation).astype("float32")
    return (x[:half], y[:half]), (x[half:], y[half:])


"""
## Models

They share the body and differ in the head and in the loss. Each ends in two scores; one score, of
`CosineDense(1)`, works too, and is `CosineDense(2)` with opposite vectors at half the scale.
"""


def body():
    return [
        keras.layers.Dense(64, "relu"),
        keras.layers.Dense(64, "relu"),
        keras.layers.Dense(16, "relu"),
    ]


def trained(way, train, seed):
    keras.utils.set_random_seed(seed)
    x, y = train
    counts = np.bincount(y)
    class_weight, callbacks = None, []
    if way == "with LDAM-DRW":
        model = keras.Sequential([*body(), keras_ldam.CosineDense(2)])
        loss = keras_ldam.LDAM(counts)
        callbacks = [keras_ldam.DRW(start=0.8, verbose=0)]
    else:
        model = keras.Sequential([*body(), keras.layers.Dense(2)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if way == "class_weight":
            class_weight = dict(enumerate(len(y) / (2 * counts)))
    model.compile(keras.optimizers.Adam(1e-3), loss=loss)
    model.fit(
        x,
        y,
        batch_size=128,
        epochs=EPOCHS,
        verbose=0,
        class_weight=class_weight,
        callbacks=callbacks,
    )
    return model


"""
## Measures

An accuracy would hide the frauds, so there are four numbers, each in percent: how many frauds are
missed, how many honest transactions raise an alarm, and two that depend on no threshold: the area
under the ROC curve and the average precision. If the last two do not change, a remedy has only
moved the threshold, which you could have done without training anything anew.
"""


def measures(model, test):
    x, y = test
    scores = model.predict(x, batch_size=2_000, verbose=0)
    guesses, evidence = scores.argmax(axis=1), scores[:, 1] - scores[:, 0]
    return [
        100 * np.mean(guesses[y == 1] == 0),
        100 * np.mean(guesses[y == 0] == 1),
        100 * roc_auc_score(y, evidence),
        100 * average_precision_score(y, evidence),
    ]


"""
## Results

Mean ± standard deviation over the seeds.
"""

print("| | frauds missed | false alarms | ROC area | average precision |")
print("|---|---|---|---|---|")
for way in ("without", "class_weight", "with LDAM-DRW"):
    found = []
    for seed in range(SEEDS):
        train, test = transactions(seed)
        found.append(measures(trained(way, train, seed), test))
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

With these data re-balancing finds more frauds at the price of more false alarms, and it does not
rank better: neither area nor average precision rises by more than its spread
over the seeds. So keep the plain network if you may choose the threshold, and choose it by what a
missed fraud and a false alarm cost. Re-balance where `argmax` must be the answer.
"""
