"""Strategies by name, the machines of a cluster, and the error for a lost machine."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import socket
import time
from collections.abc import Iterator

from keras_ldam import extras, hardware, keras_internals

with extras.needed("export", by="training on several devices"):
    import tensorflow as tf

STRATEGIES = ("none", "cores", "mirrored", "multiworker")


class WorkerLostError(ConnectionError):
    """A worker failed or never joined; training can resume from the checkpoint."""


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
    _meet(cluster, worker_timeout)
    options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=worker_timeout)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    except tf.errors.OpError as error:
        raise ValueError(
            f"Worker {cluster.index} cannot start at {cluster.address}: {_first_line(error)}"
        ) from None


def _meet(cluster: Cluster, timeout: float) -> None:
    """Waits until every worker has called the chief; TensorFlow itself would wait forever."""
    deadline = time.monotonic() + timeout
    port = cluster.address.rpartition(":")[2]
    try:
        # Workers hold it too, to find out now whether TensorFlow can have it.
        server = socket.create_server(("", int(port)))
    except OSError as error:
        raise ValueError(
            f"Worker {cluster.index} cannot listen at {cluster.address}: {error.strerror}."
        ) from None
    with server:
        if cluster.is_chief:
            _receive_all(cluster, server, deadline)
        else:
            _call_chief(cluster, deadline)


def _receive_all(cluster: Cluster, server: socket.socket, deadline: float) -> None:
    callers: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        while len(callers) < cluster.size - 1:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                caller, _ = server.accept()
                stack.enter_context(caller)
                # A stranger who connects and sends nothing must not keep the others waiting.
                caller.settimeout(1.0)
                index = int(caller.recv(16))
                if not 0 < index < cluster.size:
                    raise ValueError(f"unknown worker {index}")
                callers[index] = caller
            except (OSError, ValueError):
                if time.monotonic() > deadline:
                    absent = set(range(1, cluster.size)) - set(callers)
                    named = ", ".join(cluster.addresses[index] for index in sorted(absent))
                    raise WorkerLostError(
                        f"The chief waited in vain for {named}; start the same command on each "
                        f"of the {cluster.size} workers."
                    ) from None
        for caller in callers.values():
            caller.sendall(b"go")


def _call_chief(cluster: Cluster, deadline: float) -> None:
    host, _, port = cluster.addresses[0].rpartition(":")
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, int(port)), timeout=1) as chief:
                chief.sendall(str(cluster.index).encode())
                chief.settimeout(max(0.01, deadline - time.monotonic()))
                if chief.recv(2) == b"go":
                    return
        except OSError:
            pass
        time.sleep(0.2)
    raise WorkerLostError(
        f"Worker {cluster.index} waited in vain for the chief at {cluster.addresses[0]} and the "
        f"others; start the same command on each of the {cluster.size} workers."
    )


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
        raise WorkerLostError(
            f"Another worker failed or has stopped ({type(error).__name__}); the same command, "
            "started on every worker, resumes from the last checkpoint."
        ) from error


def _first_line(error: tf.errors.OpError) -> str:
    return ((error.message or repr(error)).strip().splitlines() or [""])[0].rstrip(".")[:200]


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The machines that train together, as `TF_CONFIG` lists them.

    Args:
        addresses: `host:port` of each machine, the chief first.
        index: Index of this process among them.
    """

    addresses: tuple[str, ...]
    index: int

    @classmethod
    def from_environment(cls) -> Cluster:
        """Reads the environment variable `TF_CONFIG`.

        It is JSON of the form
        `{"cluster": {"worker": ["host:port", …]}, "task": {"type": "worker", "index": 0}}`, and
        may have a `"chief"` beside `"worker"`. Without one, worker 0 is the chief.

        Raises:
            ValueError: if it is missing or malformed.
        """
        text = os.environ.get("TF_CONFIG", "")
        try:
            return cls._parse(text)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = "it is not set" if not text else f"{type(error).__name__}: {error}"
            raise ValueError(
                'Strategy multiworker needs TF_CONFIG of the form {"cluster": {"worker": '
                '["host:port", "host:port"]}, "task": {"type": "worker", "index": 0}}: '
                f"{reason}. Received: {text[:200]!r}"
            ) from None

    @classmethod
    def _parse(cls, text: str) -> Cluster:
        values = json.loads(text)
        jobs, task = values["cluster"], values["task"]
        unknown = set(jobs) - {"chief", "worker"}
        if unknown:
            raise ValueError(f"job {sorted(unknown)[0]!r} is neither chief nor worker")
        addresses: list[str] = []
        for job in ("chief", "worker"):
            if task["type"] == job:
                index = len(addresses) + task["index"]
                if not 0 <= task["index"] < len(jobs[job]):
                    raise ValueError(f"unknown {job} {task['index']}")
            addresses += jobs.get(job, [])
        if task["type"] not in jobs:
            raise ValueError(f"task type {task['type']!r} is not in the cluster")
        for address in addresses:
            host, _, port = address.rpartition(":")
            if not host or not 0 < int(port) < 65536:
                raise ValueError(f"{address!r} is not host:port")
        return cls(tuple(addresses), index)

    @property
    def size(self) -> int:
        """Number of machines."""
        return len(self.addresses)

    @property
    def address(self) -> str:
        """`host:port` of this machine."""
        return self.addresses[self.index]

    @property
    def is_chief(self) -> bool:
        """Whether this is the machine that writes files."""
        return self.index == 0
