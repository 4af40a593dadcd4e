"""Trains on eight virtual devices of a CPU under JAX, and tells what came out."""

import re

import jax
import keras
import numpy as np

import keras_ldam

K, BATCH = 32, 8
FOUR = ["cpu:0", "cpu:1", "cpu:2", "cpu:3"]
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
        loss=keras_ldam.LDAM(COUNTS),
        metrics=[keras_ldam.ClassErrors(COUNTS)],
    )
    x, y = examples()
    drw = keras_ldam.DRW(0, verbose=0)
    history = model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[drw])
    return model, model.get_weights(), history.history


def train_in_batches(devices):
    """Twenty steps on parts of batches, with everything that could tell parts from the whole.

    The last batch of an epoch has three examples, the first half of each batch lacks class 4, class
    weights come in the second epoch, and there are batch normalization and dropout.
    """
    sharded = devices and keras_ldam.ShardedBatches(devices=devices)
    keras.distribution.set_distribution(sharded)
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(1)
    x = generator.normal(size=(75, 6)).astype("float32")
    y = generator.integers(0, 5, 75).astype("int32")
    y[np.arange(75) % 8 < 4] %= 4
    counts = np.bincount(y, minlength=5)
    inputs = keras.Input((6,))
    features = keras.layers.Dense(16, "relu")(inputs)
    # A tenth of it: the statistics of few examples make much of rounding errors in twenty steps.
    normalized = keras.layers.Rescaling(0.1)(keras.layers.BatchNormalization()(features))
    features = keras.layers.Dropout(0.2)(features + normalized)
    model = keras.Model(inputs, keras_ldam.CosineDense(5)(features))
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        loss=keras_ldam.LDAM(counts),
        metrics=[keras_ldam.ClassErrors(counts)],
    )
    history = model.fit(
        x,
        y,
        batch_size=8,
        epochs=2,
        shuffle=False,
        verbose=0,
        callbacks=[keras_ldam.DRW(1, verbose=0)],
    )
    scores = model.predict(x[:11], verbose=0)
    held = {len(v.value.sharding.device_set) for v in model.variables}
    return [*model.get_weights(), scores], history.history, held


def train_drawn(devices):
    """Two epochs in chunks of classes: the first of examples as they come, the second balanced."""
    sharded = devices and keras_ldam.ShardedBatches(devices=devices)
    keras.distribution.set_distribution(sharded)
    keras.utils.set_random_seed(0)
    x, y = examples()
    y %= 5
    counts = np.bincount(y)
    model = keras.Sequential([keras.Input((6,)), keras_ldam.CosineDense(5)])
    trained = keras_ldam.ChunkedTraining(model, chunk_size=2)
    trained.compile(
        keras.optimizers.SGD(0.1),
        keras_ldam.LDAM(counts, gradual=False),
        metrics=[keras_ldam.ClassErrors(counts)],
    )
    batches = keras_ldam.balanced(
        (x, y), power=lambda epoch: float(epoch > 0), batch_size=BATCH, seed=1, verbose=0
    )
    clock = keras_ldam.EpochClock(batches)
    history = trained.fit(batches, epochs=2, shuffle=False, verbose=0, callbacks=[clock])
    held = {len(v.value.sharding.device_set) for v in trained.variables}
    drawn = [batches.class_counts(epoch).tolist() for epoch in range(2)]
    return model.get_weights(), history.history, held, (np.bincount(y).tolist(), *drawn)


def place_of(**changes):
    from keras_ldam.experiments.config import Config
    from keras_ldam.experiments.place import Place

    return Place.of(Config(**changes).resolve())


def program(model):
    """The compiled loss and gradient of a batch, as text."""
    x, y = (part[:BATCH] for part in examples())
    state = [v.value for v in model.trainable_variables]

    def loss(state):
        y_pred, _ = model.stateless_call(state, [], x, training=True)
        return model.stateless_compute_loss(state, [], [], x=x, y=y, y_pred=y_pred)[0]

    return jax.jit(jax.value_and_grad(loss)).lower(state).compile().as_text()


def metrics_program(model, metrics):
    """The compiled scores of a batch and what metrics make of them, as text."""
    x, y = (part[:BATCH] for part in examples())
    state = [v.value for v in model.trainable_variables]

    def update(state, kept):
        y_pred, _ = model.stateless_call(state, [], x)
        return [
            metric.stateless_update_state(part, y, y_pred)
            for metric, part in zip(metrics, kept, strict=True)
        ]

    kept = [[v.value for v in metric.variables] for metric in metrics]
    return jax.jit(update).lower(state, kept).compile().as_text()


def whole_and_parts(text):
    """How many arrays of all scores a program has, and how many of half of them."""
    return [len(re.findall(rf"\[({BATCH}|{BATCH // 2}),{size}\]", text)) for size in (K, K // 2)]


def error(**arguments):
    try:
        keras_ldam.ShardedClasses(**{"num_classes": K, "devices": FOUR, **arguments})
    except ValueError as error:
        return str(error)
    return None


def difference(a, b):
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


def main():
    """What came out, by names."""

    def head():
        return keras_ldam.CosineDense(K, name="last")

    told = {}
    expected, history, _ = train_in_batches(None)
    weights, found, held = train_in_batches(keras.distribution.list_devices())
    told["batches"] = {
        "weights": difference(weights, expected),
        "history": max(difference(found[name], history[name]) for name in history),
        "devices": sorted(held),
    }
    expected, history, _, told["drawn"] = train_drawn(None)
    weights, found, held, _ = train_drawn(keras.distribution.list_devices())
    told["chunks"] = {
        "weights": difference(weights, expected),
        "history": max(difference(found[name], history[name]) for name in history),
        "devices": sorted(held),
    }
    told["refused"] = []
    for mistake in (
        lambda: keras_ldam.ShardedBatches(devices=["gpu:0"]),
        lambda: place_of(strategy="mirrored", replicas=9),
        lambda: place_of(strategy="mirrored", batch_size=12),
        lambda: place_of(strategy="cores"),
    ):
        try:
            mistake()
        except ValueError as refused:
            told["refused"].append(str(refused))

    _, expected, history = train(None, head)
    model, weights, found = train(keras_ldam.ShardedClasses(K, devices=FOUR, replicas=2), head)
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
    told["scores"] = whole_and_parts(text)
    told["gathers"] = text.count("all-gather")
    metrics = [
        keras_ldam.ClassErrors(COUNTS),
        keras_ldam.ClassMargins(K, bins=2),
        keras_ldam.MacroF1(K),
        keras.metrics.SparseTopKCategoricalAccuracy(5),
    ]
    text = metrics_program(model, metrics)
    told["scores in metrics"] = whole_and_parts(text)
    # A best score of each example and device, and its class.
    told["gathered by metrics"] = sorted(
        {int(size) for size in re.findall(r"\[\d+,(\d+)\]\S* all-gather\(", text)}
    )
    told["errors"] = [
        error(num_classes=33),
        error(devices=["cpu:0", "cpu:9"]),
        error(devices=["cpu:0", "cpu:0"]),
        error(replicas=3),
    ]
    for mistake in (
        lambda: keras_ldam.CosineDense(K - 1).build((None, 8)),
        lambda: keras_ldam.ChunkedTraining(model),
        lambda: keras_ldam.CrossEntropy(COUNTS[:-1]),
        lambda: keras_ldam.ClassErrors(COUNTS[:-1]),
    ):
        try:
            mistake()
        except ValueError as refused:
            told["errors"].append(str(refused))
    return told
