"""Strategies by name, the machines of one, and what is said when a machine is gone."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import socket
import time
from collections.abc import Iterator

import tensorflow as tf

from keras_ldam import hardware

STRATEGIES = ("none", "cores", "mirrored", "multiworker")


class WorkerLostError(ConnectionError):
    """A machine of the cluster is gone, or did not come; what is on disk can be gone on with."""


def is_multiworker(strategy: tf.distribute.Strategy) -> bool:
    """Whether a strategy spans several processes."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def make_strategy(
    name: str, *, replicas: int = 0, worker_timeout: int = 300
) -> tf.distribute.Strategy | None:
    """A strategy by name, over the accelerators of this machine, or its CPUs if it has none.

    Call it before anything is computed: cores must be divided and machines joined first.

    Args:
        name: One of `STRATEGIES`. `"cores"`: the cores of a machine without accelerators, divided
            among replicas, which wait for each other once a step where the threads of one device
            do so in every operation. `"mirrored"`: the devices of one machine. `"multiworker"`:
            those of several, started each with the same command and its own `TF_CONFIG`.
        replicas: For `"mirrored"`: how many devices, the first ones; 0 for all. For `"cores"`:
            how many; 0 for two.
        worker_timeout: For `"multiworker"`: seconds to wait for a machine, at the start and in
            each step, before giving up.

    Returns:
        The strategy; None for `"none"`. The same one each time for the same devices.

    Raises:
        ValueError: for an unknown name, devices or cores that there are not, cores after
            something has been computed, or a malformed `TF_CONFIG`.
        WorkerLostError: if a machine does not come.
    """
    if name not in STRATEGIES:
        raise ValueError(f"unknown strategy {name!r}; known: {', '.join(STRATEGIES)}.")
    if name == "cores":
        return _cores(replicas or 2)
    if name == "mirrored":
        return _mirrored(replicas)
    if name == "multiworker":
        return _multiworker(worker_timeout)
    return None


def _cores(replicas):
    accelerators, cores = hardware.accelerators(), hardware.cores()
    if accelerators:
        raise ValueError(
            f"strategy cores is for machines without accelerators; this one has {accelerators[0]}: "
            "choose none or mirrored."
        )
    if not 2 <= replicas <= cores:
        raise ValueError(
            f"strategy cores needs from 2 replicas to as many as there are cores, here {cores}; "
            f"replicas={replicas} was asked for."
        )
    hardware.divide_cores(replicas)
    cpu = tf.config.list_physical_devices("CPU")[0]
    if len(tf.config.get_logical_device_configuration(cpu) or ()) != replicas:
        parts = [tf.config.LogicalDeviceConfiguration()] * replicas
        try:
            tf.config.set_logical_device_configuration(cpu, parts)
        except RuntimeError:
            raise ValueError(
                "strategy cores must be made before TensorFlow computes anything: cores cannot be "
                "divided later."
            ) from None
    return _mirrored(replicas)


def _mirrored(replicas):
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    devices = [device.name for device in tf.config.list_logical_devices(kind)]
    count = replicas or len(devices)
    if not 2 <= count <= len(devices):
        instead = "; strategy cores divides a CPU" if kind == "CPU" else ""
        raise ValueError(
            f"strategy mirrored needs from 2 devices to as many as there are; this machine has "
            f"{len(devices)} ({kind}), and replicas={replicas or 'all'} was asked for{instead}."
        )
    return _mirrored_over(tuple(devices[:count]))


@functools.cache
def _mirrored_over(devices):
    # A second strategy over the same devices would mistake its sums for those of the first.
    how = tf.distribute.ReductionToOneDevice() if "CPU" in devices[0] else None
    # On CPUs a plain sum is faster than a ring, gradient by gradient.
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=how)


@functools.cache
def _multiworker(worker_timeout):
    cluster = Cluster.from_environment()
    _meet(cluster, worker_timeout)
    options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=worker_timeout)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    except tf.errors.OpError as error:
        raise ValueError(
            f"worker {cluster.index} cannot be started at {cluster.address}: {_first_line(error)}"
        ) from None


def _meet(cluster, timeout):
    """Waits until every worker has called at the chief: TensorFlow itself would wait for ever."""
    deadline = time.monotonic() + timeout
    port = cluster.address.rpartition(":")[2]
    try:
        # Also held by those who only call, to find out now whether TensorFlow can have it.
        server = socket.create_server(("", int(port)))
    except OSError as error:
        raise ValueError(
            f"worker {cluster.index} cannot listen at {cluster.address}: {error.strerror}."
        ) from None
    with server:
        if cluster.is_chief:
            _receive_all(cluster, server, deadline)
        else:
            _call_chief(cluster, deadline)


def _receive_all(cluster, server, deadline):
    callers = {}
    with contextlib.ExitStack() as stack:
        while len(callers) < cluster.size - 1:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                caller, _ = server.accept()
                stack.enter_context(caller)
                # Whoever connects and says nothing must not keep the others waiting.
                caller.settimeout(1.0)
                index = int(caller.recv(16))
                if not 0 < index < cluster.size:
                    raise ValueError(f"there is no worker {index}")
                callers[index] = caller
            except (OSError, ValueError):
                if time.monotonic() > deadline:
                    absent = set(range(1, cluster.size)) - set(callers)
                    named = ", ".join(cluster.addresses[index] for index in sorted(absent))
                    raise WorkerLostError(
                        f"the chief has waited in vain for {named}; start the same command on "
                        f"each of the {cluster.size} workers."
                    ) from None
        for caller in callers.values():
            caller.sendall(b"go")


def _call_chief(cluster, deadline):
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
        f"worker {cluster.index} has waited in vain for the chief at {cluster.addresses[0]} and "
        f"the others; start the same command on each of the {cluster.size} workers."
    )


def distribute(
    strategy: tf.distribute.Strategy, dataset: tf.data.Dataset, steps: int
) -> tf.distribute.DistributedDataset:
    """A dataset whose elements go to this process's replicas in turn.

    Args:
        strategy: What `make_strategy` has returned.
        dataset: The shares of this process's replicas, one after the other, batch by batch.
        steps: Batches of an epoch.

    Returns:
        What `fit` takes.
    """
    distributed = strategy.distribute_datasets_from_function(lambda context: dataset)
    # Keras asks it for the steps of an epoch, and TensorFlow counts shares.
    distributed._cardinality = steps
    return distributed


@contextlib.contextmanager
def naming_lost_workers(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Turns what TensorFlow raises when a machine is gone into a `WorkerLostError`."""
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
            f"another worker is gone or has stopped ({type(error).__name__}); the same command, "
            "started on every worker, resumes after the last checkpoint."
        ) from error


def _first_line(error):
    return ((error.message or repr(error)).strip().splitlines() or [""])[0].rstrip(".")[:200]


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The machines that train together, as `TF_CONFIG` has them.

    Args:
        addresses: `host:port` of each, the chief first.
        index: Which of them this process is.
    """

    addresses: tuple[str, ...]
    index: int

    @classmethod
    def from_environment(cls) -> Cluster:
        """Reads the environment variable `TF_CONFIG`.

        It is JSON of the form
        `{"cluster": {"worker": ["host:port", …]}, "task": {"type": "worker", "index": 0}}`; a
        `"chief"` may stand beside the workers. Without one, worker 0 is the chief.

        Raises:
            ValueError: if it is missing or malformed.
        """
        text = os.environ.get("TF_CONFIG", "")
        try:
            return cls._parse(text)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = "it is not set" if not text else f"{type(error).__name__}: {error}"
            raise ValueError(
                'strategy multiworker needs TF_CONFIG of the form {"cluster": {"worker": '
                '["host:port", "host:port"]}, "task": {"type": "worker", "index": 0}}; received '
                f"{text[:200]!r} ({reason})."
            ) from None

    @classmethod
    def _parse(cls, text):
        values = json.loads(text)
        jobs, task = values["cluster"], values["task"]
        unknown = set(jobs) - {"chief", "worker"}
        if unknown:
            raise ValueError(f"job {sorted(unknown)[0]!r} is neither chief nor worker")
        addresses = []
        for job in ("chief", "worker"):
            if task["type"] == job:
                index = len(addresses) + task["index"]
                if not 0 <= task["index"] < len(jobs[job]):
                    raise ValueError(f"there is no {job} {task['index']}")
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
        """How many machines."""
        return len(self.addresses)

    @property
    def address(self) -> str:
        """`host:port` of this one."""
        return self.addresses[self.index]

    @property
    def is_chief(self) -> bool:
        """Whether this is the machine that writes."""
        return self.index == 0
