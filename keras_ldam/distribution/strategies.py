"""Strategies by name, and one sentence for a lost machine."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from keras_ldam import extras, hardware, keras_internals
from keras_ldam.cluster import WORKER_LOST, Cluster, WorkerLostError, meet

with extras.needed("export", by="training on several devices"):
    import tensorflow as tf

STRATEGIES = ("none", "cores", "mirrored", "multiworker")


def is_multiworker(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether a strategy spans several processes."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def make_strategy(
    name: str, *, replicas: int = 0, worker_timeout: int = 300
) -> tf.distribute.Strategy | None:
    """Returns a strategy by name, over the accelerators of this machine, or its CPUs without any.

    Call it before anything is computed: dividing cores and joining machines must come first.

    Args:
        name: One of `STRATEGIES`. `"none"`: no strategy. `"cores"`: two or more replicas that share
            the cores of a machine without accelerators; they wait for each other once per step,
            where the threads of one device do so in every operation. `"mirrored"`: the devices of
            one machine. `"multiworker"`: those of several machines, each started with the same
            command and its own `TF_CONFIG`.
        replicas: For `"mirrored"`: number of devices, the first ones; 0 for all. For `"cores"`:
            number of replicas; 0 for two. Defaults to 0.
        worker_timeout: For `"multiworker"`: seconds to wait for a machine, at the start and in
            each step, before giving up. Defaults to 300.

    Returns:
        The strategy; `None` for `"none"`. The same one each time for the same devices.

    Raises:
        ValueError: for an unknown name, more or fewer replicas than the devices or cores allow,
            `"cores"` after something was computed, or a malformed `TF_CONFIG`.
        WorkerLostError: if a machine does not join in time.
    """
    if name not in STRATEGIES:
        raise ValueError(f"`name` must be one of {', '.join(STRATEGIES)}. Received: {name!r}")
    if name == "cores":
        return _cores(replicas or 2)
    if name == "mirrored":
        return _mirrored(replicas)
    if name == "multiworker":
        return _multiworker(worker_timeout)
    return None


def _cores(replicas: int) -> tf.distribute.Strategy:
    accelerators, cores = hardware.accelerators(), hardware.cores()
    if accelerators:
        raise ValueError(
            f"Strategy cores needs a machine without accelerators, and this one has "
            f"{accelerators[0]}; choose none or mirrored."
        )
    if not 2 <= replicas <= cores:
        raise ValueError(
            f"Strategy cores needs at least 2 replicas, and at most one per core of the "
            f"{cores} available. Received: replicas={replicas}"
        )
    hardware.divide_cores(replicas)
    cpu = tf.config.list_physical_devices("CPU")[0]
    if len(tf.config.get_logical_device_configuration(cpu) or ()) != replicas:
        parts = [tf.config.LogicalDeviceConfiguration()] * replicas
        try:
            tf.config.set_logical_device_configuration(cpu, parts)
        except RuntimeError:
            raise ValueError(
                "Strategy cores must be created before TensorFlow computes anything; cores cannot "
                "be divided later."
            ) from None
    return _mirrored(replicas)


def _mirrored(replicas: int) -> tf.distribute.Strategy:
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    devices = [device.name for device in tf.config.list_logical_devices(kind)]
    count = replicas or len(devices)
    if not 2 <= count <= len(devices):
        instead = "; strategy cores divides a CPU" if kind == "CPU" else ""
        raise ValueError(
            f"Strategy mirrored needs at least 2 devices, and at most the {len(devices)} ({kind}) "
            f"of this machine{instead}. Received: replicas={replicas or 'all'}"
        )
    return _mirrored_over(tuple(devices[:count]))


@functools.cache
def _mirrored_over(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    # A second strategy over the same devices would confuse its sums with those of the first.
    how = tf.distribute.ReductionToOneDevice() if "CPU" in devices[0] else None
    # On CPUs a plain sum is faster than a ring, gradient by gradient.
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=how)


@functools.cache
def _multiworker(worker_timeout: int) -> tf.distribute.Strategy:
    cluster = Cluster.from_environment()
    meet(cluster, worker_timeout)
    options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=worker_timeout)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    except tf.errors.OpError as error:
        raise ValueError(
            f"Worker {cluster.index} cannot start at {cluster.address}: {_first_line(error)}"
        ) from None


def distribute(
    strategy: tf.distribute.Strategy, dataset: tf.data.Dataset, steps: int
) -> tf.distribute.DistributedDataset:
    """Returns a dataset whose elements go to this process's replicas in turn.

    Args:
        strategy: A strategy of `make_strategy`.
        dataset: The shares of this process's replicas, one after the other, batch by batch.
        steps: Number of batches of an epoch.

    Returns:
        A dataset for `fit`.
    """
    distributed = strategy.distribute_datasets_from_function(lambda context: dataset)
    keras_internals.set_cardinality(distributed, steps)
    return distributed


@contextlib.contextmanager
def naming_lost_workers(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Turns the errors that TensorFlow raises for a lost machine into a `WorkerLostError`."""
    try:
        yield
    except (
        tf.errors.UnavailableError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
        tf.errors.FailedPreconditionError,
        tf.errors.InternalError,
    ) as error:
        if not is_multiworker(strategy):
            raise
        raise WorkerLostError(WORKER_LOST.format(error=type(error).__name__)) from error


def _first_line(error: tf.errors.OpError) -> str:
    return ((error.message or repr(error)).strip().splitlines() or [""])[0].rstrip(".")[:200]
