"""One of two machines that train together on JAX, until the second is lost.

TF_CONFIG=… KERAS_BACKEND=jax python tests/two_processes.py OUTPUT
"""

import os
import signal
import sys

import keras
import numpy as np

import keras_ldam
from keras_ldam.cluster import WorkerLostError

BATCH = 8


def fit(model):
    """Three batches with class weights, the last of three examples; returns the loss."""
    generator = np.random.default_rng(2)
    x = generator.normal(size=(2 * BATCH + 3, 6)).astype("float32")
    y = np.arange(len(x), dtype="int32") % 5
    y[np.arange(len(x)) % BATCH < BATCH // 2] %= 4  # Class 4 is never in a batch's first half.
    drw = keras_ldam.DRW(0, verbose=0)
    found = model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[drw])
    return found.history["loss"]


def made(**compiled):
    """A model whose weights are the same on every backend."""
    model = keras.Sequential([keras.Input((6,)), keras_ldam.CosineDense(5)])
    loss = keras_ldam.LDAM([40, 20, 10, 5, 2], gradual=False)
    model.compile(keras.optimizers.SGD(0.1), loss, **compiled)
    generator = np.random.default_rng(3)
    model.set_weights([generator.normal(size=w.shape) for w in model.get_weights()])
    return model


def main(output):
    from keras_ldam.experiments.config import Config
    from keras_ldam.experiments.place import Place

    settings = {"strategy": "multiworker", "batch_size": BATCH, "worker_timeout": 30}
    place = Place.of(Config(**settings).resolve())
    keras.utils.set_random_seed(0)  # JAX refuses initial weights that differ.
    with place.scope():
        model = made()
    with place.training():
        loss = fit(model)
    np.savez(output, *model.get_weights(), loss=loss)
    if not place.writes:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        with place.training():
            fit(model)
    except WorkerLostError as lost:
        print(lost)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
