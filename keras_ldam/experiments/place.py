"""Where a run is computed: on one device, or on the replicas of a strategy."""

from __future__ import annotations

import contextlib
from typing import Any

import keras

from keras_ldam import hardware
from keras_ldam.experiments import datasets, feeding
from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets.sampling import Batches


class Place:
    """The devices that a run is computed on.

    Args:
        strategy: A `tf.distribute` strategy; `None` for one device.
        first: Number of this process's first replica.
        local: Number of this process's replicas.
        writes: Whether this process writes the run folder.
        at_once: Number of batches to evaluate side by side: as many as the cores are divided for.
    """

    def __init__(
        self,
        strategy: Any = None,
        *,
        first: int = 0,
        local: int = 1,
        writes: bool = True,
        at_once: int = 1,
    ):
        self.strategy, self.writes, self.at_once = strategy, writes, at_once
        self.replicas = 1 if strategy is None else strategy.num_replicas_in_sync
        self.own = range(first, first + local)

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
        if keras.backend.backend() != "tensorflow":
            raise ValueError(
                f"strategy {config.strategy} needs Keras' TensorFlow backend. "
                f"Received: {keras.backend.backend()!r}"
            )
        from keras_ldam import distribution

        strategy = distribution.make_strategy(
            config.strategy, replicas=config.replicas, worker_timeout=config.worker_timeout
        )
        local = len(strategy.extended.worker_devices)
        if config.strategy != "multiworker":
            return cls(strategy, local=local, at_once=local if config.strategy == "cores" else 1)
        worker = distribution.Cluster.from_environment().index
        return cls(strategy, first=worker * local, local=local, writes=worker == 0)

    def scope(self) -> contextlib.AbstractContextManager:
        """The strategy's scope, for everything that makes variables."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def feed(self, batches: Batches) -> Any:
        """What `fit` takes to train on batches here."""
        if self.strategy is None:
            return feeding.feed(batches)
        from keras_ldam import distribution

        steps = len(batches) // len(self.own)
        return distribution.distribute(self.strategy, feeding.feed(batches), steps)

    def naming_lost_workers(self) -> contextlib.AbstractContextManager:
        """Turns TensorFlow's error for a lost worker into one sentence."""
        if self.strategy is None:
            return contextlib.nullcontext()
        from keras_ldam import distribution

        return distribution.naming_lost_workers(self.strategy)


def divide_cores(config: Config) -> None:
    """Divides the cores between chains of operations, for a dataset whose network gains by it."""
    if datasets.declared(config.dataset).DIVIDES_CORES:
        hardware.divide_cores()
