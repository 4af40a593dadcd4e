"""A small training that must come out the same on one device, on two replicas, on two machines.

TF_CONFIG=… python tests/replicas.py out.npz    # as one of the machines of a cluster
"""

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np

import keras_ldam

ROOT = Path(__file__).parent.parent
COUNTS = [40, 20, 10, 5, 2]
BATCH = 8
EXAMPLES = 9 * BATCH + 3
"""Ten steps an epoch, the last with three examples: of two replicas the second has none."""
EPOCHS = 2


def examples():
    """Features and labels; every batch's first half lacks class 4."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(EXAMPLES, 6)).astype("float32")
    y = generator.integers(0, len(COUNTS), EXAMPLES).astype("int32")
    y[np.arange(EXAMPLES) % BATCH < BATCH // 2] %= 4
    return x, y


def batches():
    """Batches of the global size."""
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(examples()).batch(BATCH)


def train(strategy, model_class, *, loss=None, optimizer=None, steps_per_execution=1, **compiled):
    """Trains with DRW from the second epoch; returns history, weights and traces of the step."""
    scope = contextlib.nullcontext() if strategy is None else strategy.scope()
    with scope:
        inputs = keras.Input((6,))
        x = keras.layers.Dense(
            16,
            "relu",
            kernel_initializer=keras.initializers.GlorotUniform(1),
            kernel_regularizer=keras.regularizers.L2(1e-2),
        )(inputs)
        head = keras_ldam.CosineDense(5, kernel_initializer=keras.initializers.GlorotUniform(2))
        model = model_class(inputs, head(x))
        model.compile(
            (optimizer or (lambda: keras.optimizers.SGD(0.1, momentum=0.9)))(),
            loss=(loss or functools.partial(keras_ldam.LDAM, gradual=False))(COUNTS),
            metrics=[keras_ldam.ClassErrors(COUNTS)],
            steps_per_execution=steps_per_execution,
            **compiled,
        )
    traces, step = [], model.train_step

    def counted(data):
        traces.append(1)
        return step(data)

    model.train_step = counted
    drw = keras_ldam.DRW(1, verbose=0)
    history = model.fit(batches(), epochs=EPOCHS, verbose=0, shuffle=False, callbacks=[drw])
    return history.history, model.get_weights(), len(traces)


def free_ports(count):
    servers = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


def start_cluster(commands, outputs):
    """Starts each command as one machine of a cluster on loopback."""
    addresses = [f"localhost:{port}" for port in free_ports(len(commands))]
    processes = []
    for index, command in enumerate(commands):
        task = {"type": "worker", "index": index}
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "-1",
            "TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": task}),
        }
        with open(outputs / f"{index}.txt", "w") as output:
            processes.append(
                subprocess.Popen(
                    [sys.executable, *command],
                    cwd=ROOT,
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
    return processes


def end(processes):
    for process in processes:
        process.kill()
        process.wait()


def main(name, output):
    """Trains under the strategy of this name, and writes what came out."""
    import tensorflow as tf

    from keras_ldam import distribution

    strategy = distribution.make_strategy(name, worker_timeout=60)
    history, weights, _ = train(strategy, distribution.ReplicatedModel, jit_compile=True)
    threads = tf.config.threading
    np.savez(
        output,
        *weights,
        loss=history["loss"],
        devices=strategy.extended.worker_devices,
        threads=[
            threads.get_inter_op_parallelism_threads(),
            threads.get_intra_op_parallelism_threads(),
        ],
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
