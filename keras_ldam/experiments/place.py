"""Where a run is computed: on one device, or on the replicas of a strategy."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from keras_ldam import hardware
from keras_ldam.cluster import WORKER_LOST, Cluster, WorkerLostError, meet
from keras_ldam.experiments import datasets, feeding
from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets.sampling import Batches
from keras_ldam.sharding import ShardedBatches


class Place:
    """The devices that a run is computed on.

    Args:
        strategy: A `tf.distribute` strategy, or on JAX a Keras distribution; `None` for one device.
        replicas: Number of devices that divide a batch.
        shares: Number of shares that the pipeline cuts a batch into; on JAX that is done later.
        own: The shares of this process.
        writes: Whether this process writes the run folder.
        at_once: Number of batches to evaluate side by side: as many as the cores are divided for.
    """

    def __init__(
        self,
        strategy: Any = None,
        *,
        replicas: int = 1,
        shares: int = 1,
        own: range = range(1),
        writes: bool = True,
        at_once: int = 1,
    ):
        self.strategy, self.writes, self.at_once = strategy, writes, at_once
        self.replicas, self.shares, self.own = replicas, shares, own

    @classmethod
    def of(cls, config: Config) -> Place:
        """Returns the place that a config asks for; call it before anything is computed.

        Raises:
            ValueError: for devices that do not exist, a backend without strategies, or a
                precision that this machine lacks.
        """
        if config.precision == "mixed_float16" and not hardware.accelerators():
            raise ValueError(
                "precision mixed_float16 needs an accelerator, and this machine has only CPUs; "
                "choose float32 or mixed_bfloat16."
            )
        if config.strategy == "none":
            divide_cores(config)
            return cls()
        if keras.backend.backend() == "jax":
            return cls._on_jax(config)
        if keras.backend.backend() != "tensorflow":
            raise ValueError(
                f"strategy {config.strategy} needs Keras' TensorFlow or JAX backend. "
                f"Received: {keras.backend.backend()!r}"
            )
        from keras_ldam import distribution

        strategy = distribution.make_strategy(
            config.strategy, replicas=config.replicas, worker_timeout=config.worker_timeout
        )
        local, replicas = len(strategy.extended.worker_devices), strategy.num_replicas_in_sync
        worker = 0
        if config.strategy == "multiworker":
            worker = Cluster.from_environment().index
        return cls(
            strategy,
            replicas=replicas,
            shares=replicas,
            own=range(worker * local, (worker + 1) * local),
            writes=worker == 0,
            at_once=local if config.strategy == "cores" else 1,
        )

    @classmethod
    def _on_jax(cls, config: Config) -> Place:
        if config.strategy == "cores":
            raise ValueError(
                "strategy cores needs Keras' TensorFlow backend, whose threads it divides; on JAX "
                "choose none or mirrored."
            )
        writes = True
        if config.strategy == "multiworker":
            writes = _join(Cluster.from_environment(), config.worker_timeout)
        devices = keras.distribution.list_devices()
        if config.strategy == "mirrored":
            count = config.replicas or len(devices)
            if not 2 <= count <= len(devices):
                kind = devices[0].partition(":")[0].upper()
                raise ValueError(
                    f"Strategy mirrored needs at least 2 devices, and at most the {len(devices)} "
                    f"({kind}) of this machine. Received: replicas={config.replicas or 'all'}"
                )
            devices = devices[:count]
        if config.batch_size % len(devices):
            raise ValueError(
                f"`batch_size` must be a multiple of the number of replicas, {len(devices)}. "
                f"Received: batch_size={config.batch_size}"
            )
        return cls(ShardedBatches(devices=devices), replicas=len(devices), writes=writes)

    def scope(self) -> contextlib.AbstractContextManager:
        """The strategy's scope, for everything that makes variables."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def feed(self, batches: Batches) -> Any:
        """What `fit` takes to train on batches here."""
        if self.strategy is None or self._on_mesh:
            return feeding.feed(batches)
        from keras_ldam import distribution

        steps = len(batches) // len(self.own)
        return distribution.distribute(self.strategy, feeding.feed(batches), steps)

    def spread(self, batches: Iterable[tuple[Any, Any]]) -> Iterable[tuple[Any, Any]]:
        """What to evaluate on: batches whose examples lie on all devices, where they can."""
        if not self._on_mesh or not self.strategy.is_local:
            return batches
        return ((self.strategy.place(examples), labels) for examples, labels in batches)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Within it `fit` is called: the error for a lost worker becomes one sentence."""
        if self.strategy is None:
            yield
        elif self._on_mesh:
            with self.strategy.scope(), _naming_lost_processes(self.strategy):
                yield
        else:
            from keras_ldam import distribution

            with distribution.naming_lost_workers(self.strategy):
                yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Within it, what Keras makes to write a file concerns no other process."""
        if not self._on_mesh:
            yield
            return
        distribution = keras.distribution.distribution()
        keras.distribution.set_distribution(None)
        try:
            yield
        finally:
            keras.distribution.set_distribution(distribution)

    @property
    def _on_mesh(self) -> bool:
        return isinstance(self.strategy, ShardedBatches)


def _join(cluster: Cluster, timeout: int) -> bool:
    """Makes this process one of a cluster on JAX; returns whether it is the chief."""
    import jax

    if not jax.distributed.is_initialized():
        meet(cluster, timeout)
        # On CPUs two programs that run at a time would get each other's sums.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        # Otherwise JAX aborts a process that survives another, whatever it is about to say.
        jax.config.update("jax_enable_recoverability", True)
        jax.distributed.initialize(
            cluster.addresses[0],
            cluster.size,
            cluster.index,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=timeout,
        )
    return cluster.is_chief


_LOST = "Gloo|NCCL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|heartbeat|coordination"
"""What JAX's errors say where another process is lost."""


@contextlib.contextmanager
def _naming_lost_processes(distribution: ShardedBatches) -> Iterator[None]:
    import jax

    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # Of an operation between CPUs JAX raises a ValueError.
        if distribution.is_local or not re.search(_LOST, str(error)):
            raise
        raise WorkerLostError(WORKER_LOST.format(error=type(error).__name__)) from error


def divide_cores(config: Config) -> None:
    """Divides the cores between chains of operations, for a dataset whose network gains by it."""
    if datasets.declared(config.dataset).DIVIDES_CORES:
        hardware.divide_cores()
