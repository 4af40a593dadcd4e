"""The machines that train together: who they are, how they meet, and the error for a lost one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import time

WORKER_LOST = (
    "Another worker failed or has stopped ({error}); the same command, started on every worker, "
    "resumes from the last checkpoint."
)
"""The sentence for the others."""


class WorkerLostError(ConnectionError):
    """A worker failed or never joined; training can resume from the checkpoint."""


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


def meet(cluster: Cluster, timeout: float) -> None:
    """Waits until every worker has called the chief; a backend would wait longer, or for ever.

    Args:
        cluster: The machines.
        timeout: Seconds to wait.

    Raises:
        ValueError: if the own address cannot be listened at.
        WorkerLostError: if a machine does not come in time.
    """
    deadline = time.monotonic() + timeout
    port = cluster.address.rpartition(":")[2]
    try:
        # Workers hold it too, to find out now whether the backend can have it.
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
