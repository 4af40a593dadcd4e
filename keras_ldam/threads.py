"""How a program divides the processor's cores."""

from __future__ import annotations

import contextlib
import os


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def for_two_directions() -> None:
    """Makes TensorFlow run two chains of operations side by side, each on half of the cores.

    An LSTM consists of thousands of small operations, one waiting for another. By default
    TensorFlow spreads each over all cores, and much of the time goes to threads that wait for each
    other. The two directions are independent and need not. Networks for images are one chain of
    large operations, which the default suits. Measured on two cores only.

    Call it before TensorFlow computes anything: later it changes nothing. It changes nothing
    either with an accelerator, on another backend than TensorFlow, on a single core, or where
    `TF_NUM_INTRAOP_THREADS` or `TF_NUM_INTEROP_THREADS` has decided already.
    """
    decided = {"TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"} & os.environ.keys()
    if decided or cores() < 2:
        return
    import keras

    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    if any(device.device_type != "CPU" for device in tf.config.list_physical_devices()):
        return
    # TensorFlow refuses once it has computed something.
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_inter_op_parallelism_threads(2)
        tf.config.threading.set_intra_op_parallelism_threads(cores() // 2)
