"""Trains on several virtual devices of a CPU, and tells what came out as JSON.

KERAS_BACKEND=jax XLA_FLAGS=--xla_force_host_platform_device_count=4 python tests/sharded.py
"""

import json
import re

import jax
import keras
import numpy as np

import keras_ldam

K, BATCH = 32, 8
COUNTS = np.arange(1, K + 1) ** 2


def examples():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(3 * BATCH, 6)).astype("float32")
    return x, generator.integers(0, K - 4, 3 * BATCH).astype("int32")


def train(distribution, head):
    """Three steps with class weights; returns model, weights and history."""
    keras.distribution.set_distribution(distribution)
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    model = keras.Model(inputs, head()(keras.layers.Dense(8, "tanh")(inputs)))
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        loss=keras_ldam.LDAM(COUNTS, class_weights=keras_ldam.class_weights(COUNTS)),
        metrics=[keras_ldam.ClassErrors(COUNTS)],
    )
    x, y = examples()
    history = model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    return model, model.get_weights(), history.history


def program(model):
    """The compiled loss and gradient of a batch, as text."""
    x, y = (part[:BATCH] for part in examples())
    state = [v.value for v in model.trainable_variables]

    def loss(state):
        y_pred, _ = model.stateless_call(state, [], x, training=True)
        return model.stateless_compute_loss(state, [], [], x=x, y=y, y_pred=y_pred)[0]

    return jax.jit(jax.value_and_grad(loss)).lower(state).compile().as_text()


def error(**arguments):
    try:
        keras_ldam.ShardedClasses(**{"num_classes": K, **arguments})
    except ValueError as error:
        return str(error)
    return None


def difference(a, b):
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


def main():
    def head():
        return keras_ldam.CosineDense(K, name="last")

    _, expected, history = train(None, head)
    told = {}
    model, weights, found = train(keras_ldam.ShardedClasses(K, replicas=2), head)
    told["weights"] = difference(weights, expected)
    told["history"] = max(abs(found[name][0] - history[name][0]) for name in history)
    # All class vectors, their momentum, class weights and sums of errors; of two devices each.
    divided = [
        v
        for v in (*model.variables, *model.optimizer.variables, *model.metrics_variables)
        if v.shape[-1:] == (K,)
    ]
    told["divided"] = sorted({v.value.addressable_shards[0].data.shape[-1] for v in divided})
    told["number"] = len(divided)
    text = program(model)
    told["whole scores"] = len(re.findall(rf"\[({BATCH}|{BATCH // 2}),{K}\]", text))
    told["parts of scores"] = len(re.findall(rf"\[({BATCH}|{BATCH // 2}),{K // 2}\]", text))
    told["gathers"] = text.count("all-gather")
    told["errors"] = [
        error(num_classes=33),
        error(devices=["cpu:0", "cpu:9"]),
        error(replicas=3),
    ]
    for mistake in (
        lambda: keras_ldam.CosineDense(K - 1).build((None, 8)),
        lambda: keras_ldam.ChunkedTraining(model),
    ):
        try:
            mistake()
        except ValueError as refused:
            told["errors"].append(str(refused))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
