"""A small training that must come out the same on one device, on two replicas, on two machines."""

import contextlib
import ctypes
import functools
import json
import multiprocessing
import os
import socket

import keras
import numpy as np

import keras_ldam

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


# Processes are forked from one that has imported TensorFlow and not used it: importing it takes
# longer than all that they do.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["keras_ldam.experiments.cli", "keras_ldam.experiments.training"])


def start(work, arguments, output, **environment):
    """Starts `work(*arguments)` in a process, which ends with what that returns.

    Args:
        work: A function of a module.
        arguments: Its arguments.
        output: The file for what it writes to standard output and error.
        **environment: Variables of its environment; None for one that it must not have.

    Returns:
        The process.
    """
    environment = {"CUDA_VISIBLE_DEVICES": "-1", **environment}
    process = FORKS.Process(target=_worked, args=(work, arguments, output, environment))
    process.start()
    return process


def _worked(work, arguments, output, environment):
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    with open(output, "wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    # As a program ends: with all that TensorFlow does then, which may hang.
    ctypes.pythonapi.Py_Exit(work(*arguments) or 0)


def start_cluster(work, arguments, outputs):
    """Starts a work for each of the arguments, each as one machine of a cluster on loopback."""
    addresses = [f"localhost:{port}" for port in free_ports(len(arguments))]
    return [
        start(
            work,
            given,
            outputs / f"{index}.txt",
            TF_CONFIG=json.dumps(
                {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            ),
        )
        for index, given in enumerate(arguments)
    ]


def ended(process, timeout=120):
    """The exit code of a process; None if it has not ended in this time, in seconds."""
    process.join(timeout)
    return process.exitcode


def end(processes):
    for process in processes:
        process.kill()
        process.join()


def train_on_eight(output):
    """Trains on eight devices, each with one example of a batch, or none, and saves what came."""
    import tensorflow as tf

    from keras_ldam import distribution

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 8)
    strategy = distribution.make_strategy("mirrored")
    history, weights, _ = train(strategy, distribution.ReplicatedModel, jit_compile=False)
    np.savez(output, *weights, loss=history["loss"], devices=strategy.extended.worker_devices)


def train_and_save(name, output):
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
