"""The processors of this machine, and how a program divides them."""

from __future__ import annotations

import collections
import contextlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

from keras_ldam.version import __version__


def cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def accelerators() -> list[str]:
    """Returns the names of this process's devices that are not CPUs, from Keras' backend."""
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        found = [d for d in tf.config.list_physical_devices() if d.device_type != "CPU"]
        details = [tf.config.experimental.get_device_details(device) for device in found]
        return [
            of.get("device_name", device.device_type)
            for device, of in zip(found, details, strict=True)
        ]
    if backend == "jax":
        import jax

        return [device.device_kind for device in jax.local_devices() if device.platform != "cpu"]
    if backend == "torch":
        import torch

        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return []


def describe() -> str:
    """Returns one line: accelerators, processor, usable cores and operating system."""
    parts = [
        name if number == 1 else f"{number} × {name}"
        for name, number in collections.Counter(accelerators()).items()
    ]
    return ", ".join([*parts, _processor(), f"{cores()} cores", sys.platform])


def _processor() -> str:
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return name
    lines = cpuinfo.read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    name = models[0] if models else name
    best = next((f for f in ("amx_bf16", "avx512f", "avx2") if f in flags.split()), "")
    return f"{name} ({best})" if best else name


def versions() -> dict[str, str]:
    """Returns the versions of the packages that compute a result, and Keras' backend."""
    # Not from the metadata, which a checkout that is not installed lacks.
    found = {"python": platform.python_version(), "keras_ldam": __version__}
    for package in ("keras", "tensorflow", "jax", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    import keras

    found["backend"] = keras.backend.backend()
    return found


def made_with() -> str:
    """Returns one line to stand below printed results: backend, versions and hardware."""
    found = versions()
    backend = found.pop("backend")
    listed = ", ".join(f"{name} {version}" for name, version in found.items())
    return f"backend {backend}; {listed}; {describe()}"


def divide_cores(chains: int = 2) -> None:
    """Lets TensorFlow run chains of operations side by side, each on its part of the cores.

    Call it before TensorFlow computes anything; later it has no effect. By default TensorFlow
    spreads each operation over all cores, and threads that are done wait for the others. That suits
    one chain of large operations, such as a network for images on one device. An LSTM consists of
    thousands of small operations, but its two directions are independent and need not wait for each
    other; nor need replicas. It was measured on two cores only.

    It also has no effect with an accelerator, on a backend other than TensorFlow, with fewer cores
    than chains, or if `TF_NUM_INTRAOP_THREADS` or `TF_NUM_INTEROP_THREADS` is set.

    Args:
        chains: Number of chains. Defaults to 2, the directions of an LSTM.
    """
    decided = {"TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"} & os.environ.keys()
    if decided or cores() < chains:
        return
    import keras

    if keras.backend.backend() != "tensorflow" or accelerators():
        return
    import tensorflow as tf

    # TensorFlow refuses after it has computed something.
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_inter_op_parallelism_threads(chains)
        tf.config.threading.set_intra_op_parallelism_threads(cores() // chains)
