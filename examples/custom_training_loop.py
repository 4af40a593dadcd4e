"""
Title: A training loop of your own, on JAX and on TensorFlow
Description: LDAM-DRW without `fit`: class weights as an argument of the compiled step.
Accelerator: None
"""

"""
## Introduction

`keras_ldam.DRW` is a callback of `fit`. In a loop of your own you decide when the weights change,
and pass them to the loss: `loss(y, scores, class_weights=weights)`. They are a tensor, so one
compiled step serves before and after the switch, on both backends. (A Python attribute would be
baked into the compiled step: the switch would never happen, and nothing would tell you.)

    KERAS_BACKEND=jax python examples/custom_training_loop.py
    KERAS_BACKEND=tensorflow python examples/custom_training_loop.py
"""

import os

import keras
import numpy as np

import keras_ldam
from keras_ldam import hardware

SMOKE = bool(os.environ.get("SMOKE"))  # Set by the tests: one short run.
SEEDS = 1 if SMOKE else 3
EPOCHS = 2 if SMOKE else 30
NUM_CLASSES = 10

"""
## Data

Clusters of points: 1,000 examples of the most frequent class, 10 of the rarest.
"""

largest = 200 if SMOKE else 1000
counts = keras_ldam.long_tailed_counts(NUM_CLASSES, max_count=largest, imbalance_ratio=100)


def clusters(seed):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(NUM_CLASSES, 3, 16))

    def make(per_class):
        y = np.repeat(np.arange(NUM_CLASSES), per_class)
        return rng.normal(centers[y, rng.integers(3, size=len(y))]).astype("float32"), y

    return make(counts), make(20 if SMOKE else 200)


"""
## The step, twice

On JAX everything that changes goes in and comes out; on TensorFlow variables are changed in
place.
"""


def jax_step(model, optimizer, loss):
    import jax

    def value(trainable, fixed, x, y, class_weights):
        scores, fixed = model.stateless_call(trainable, fixed, x, training=True)
        return loss(y, scores, class_weights=class_weights), fixed

    @jax.jit
    def compiled(state, x, y, class_weights):
        trainable, fixed, moments = state
        (found, fixed), gradients = jax.value_and_grad(value, has_aux=True)(
            trainable, fixed, x, y, class_weights
        )
        trainable, moments = optimizer.stateless_apply(moments, gradients, trainable)
        return (trainable, fixed, moments), found

    kept = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
    state = tuple([variable.value for variable in variables] for variables in kept)

    def step(x, y, class_weights):
        nonlocal state
        state, found = compiled(state, x, y, class_weights)
        return found

    def finish():
        for variables, values in zip(kept, state, strict=True):
            for variable, new in zip(variables, values, strict=True):
                variable.assign(new)

    return step, finish


def tensorflow_step(model, optimizer, loss):
    import tensorflow as tf

    @tf.function
    def step(x, y, class_weights):
        with tf.GradientTape() as tape:
            found = loss(y, model(x, training=True), class_weights=class_weights)
        gradients = tape.gradient(found, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return found

    return step, lambda: None


"""
## The loop

Weights are ones, and from four fifths on those of the effective numbers.
"""


def trained(way, train, seed):
    keras.utils.set_random_seed(seed)
    x, y = train
    margins = way == "with LDAM-DRW"
    head = keras_ldam.CosineDense(NUM_CLASSES) if margins else keras.layers.Dense(NUM_CLASSES)
    model = keras.Sequential([keras.layers.Dense(64, "relu"), keras.layers.Dense(64, "relu"), head])
    model.build(x.shape)
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)
    loss = keras_ldam.LDAM(counts) if margins else keras_ldam.CrossEntropy(counts)
    make_step = jax_step if keras.backend.backend() == "jax" else tensorflow_step
    step, finish = make_step(model, optimizer, loss)

    plain = np.ones(NUM_CLASSES, "float32")
    weighted = keras_ldam.class_weights(counts)
    order = np.random.default_rng(seed)
    for epoch in range(EPOCHS):
        deferred = margins and epoch >= round(0.8 * EPOCHS)
        class_weights = keras.ops.convert_to_tensor(weighted if deferred else plain)
        shuffled = order.permutation(len(x))
        for start in range(0, len(x) - 63, 64):
            batch = shuffled[start : start + 64]
            step(x[batch], y[batch], class_weights)
    finish()
    return model


"""
## Results
"""

print("| | error, all classes | error, two rarest classes |")
print("|---|---|---|")
for way in ("without", "with LDAM-DRW"):
    found = []
    for seed in range(SEEDS):
        train, (x, y) = clusters(seed)
        guesses = np.argmax(trained(way, train, seed).predict(x, batch_size=500, verbose=0), axis=1)
        wrong = guesses != y
        found.append([100 * wrong.mean(), 100 * wrong[y >= NUM_CLASSES - 2].mean()])
    cells = [
        f"{mean:.1f} ± {deviation:.1f}"
        for mean, deviation in zip(
            np.mean(found, axis=0), np.std(found, axis=0, ddof=SEEDS > 1), strict=True
        )
    ]
    print(f"| {way} | {' | '.join(cells)} |")
print(f"\nPercent of balanced test data, n = {SEEDS} seeds; {hardware.made_with()}.")

"""
## What came of it

Both errors fall, that of the rarest classes more. Part of it comes from the late weights alone:
give `CrossEntropy(counts)` the same weights to see how much.
"""
