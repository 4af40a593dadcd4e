"""Training on several devices or machines: a strategy by name, and a step that XLA can compile.

    strategy = make_strategy("mirrored")
    with strategy.scope():
        model = ReplicatedModel(inputs, outputs)
        model.compile(optimizer, loss=keras_ldam.LDAM(counts), jit_compile=True)
    model.fit(dataset)  # Batches of the global size.

Needs TensorFlow as Keras' backend.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.tensorflow.trainer import reduce_per_replica
from tensorflow.python.data.ops import multi_device_iterator_ops

from keras_ldam import losses

STRATEGIES = ("none", "mirrored", "multiworker")


class WorkerLostError(ConnectionError):
    """A machine of the cluster is gone, or did not come; what is on disk can be gone on with."""


# ----------------------------------------------------------------------------- the step


class ReplicatedStep:
    """Mixin for a Keras model: training steps for `tf.distribute`, exact and compilable.

    Put it before `keras.Model` among the bases of your model, or take `ReplicatedModel`. Create
    model, loss and optimizer inside `strategy.scope()`, then `compile` and `fit` as ever, with
    batches of the global size. It differs from Keras' own step in this:

    - The batch is the global one. Each replica's loss and gradients count by its share of the
      batch: by the sum of its weights for the losses of `keras_ldam`, Σ w ℓ / Σ w over all
      replicas, and by its number of examples otherwise. So a last partial batch, a class that one
      replica does not see, and a replica whose share is empty change nothing: the weights are
      those of a single device up to rounding. (But batch normalisation is by each replica's
      share. Its moving statistics are averaged over the replicas at the end of each epoch, before
      other callbacks, so that all replicas end with the same.)
    - `jit_compile=True` compiles forward and backward pass with XLA. All-reduce, optimizer and
      metrics stay outside, since XLA cannot have variables of several devices in one cluster;
      with Keras' step it fails under a strategy. `"auto"` is on where there is an accelerator:
      on CPUs XLA is slower, see `benchmarks/README.md`.
    - It clips gradients (`clipnorm`, `global_clipnorm`, `clipvalue`) after they have been summed;
      Keras clips each replica's part.
    - `fit` and `evaluate` work under `MultiWorkerMirroredStrategy`.

    `predict` is Keras' own: under a strategy pass it a `tf.data.Dataset`. The reduction of the loss
    must be a mean. With several losses or outputs, shares count by examples.

    Raises:
        ValueError: from `compile`, for a loss that is not reduced to a mean, or the loss scaling
            of `mixed_float16` over several replicas, with which models were seen to diverge.
    """

    def compile(self, *args: Any, jit_compile: bool | str = "auto", **kwargs: Any) -> None:
        """As in Keras; `jit_compile` is for the forward and backward pass."""
        # Keras would compile the whole step, optimizer and all-reduce included.
        super().compile(*args, jit_compile=False, **kwargs)
        reduction = getattr(self.loss, "reduction", "sum_over_batch_size")
        if reduction not in ("sum_over_batch_size", "mean", "mean_with_sample_weight"):
            raise ValueError(
                "the loss must be reduced to a mean over the batch, by 'mean_with_sample_weight' "
                f"or 'sum_over_batch_size'; received reduction={reduction!r}."
            )
        scales = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        if scales and self.distribute_strategy.num_replicas_in_sync > 1:
            raise ValueError(
                "the loss scaling of mixed_float16 does not work over several replicas; choose "
                "mixed_bfloat16 or float32."
            )
        if jit_compile == "auto":
            jit_compile = has_accelerator() and all(
                layer.supports_jit for layer in self._flatten_layers()
            )
        self.pass_is_compiled = bool(jit_compile)
        self._pass = self._forward_and_backward
        if self.pass_is_compiled:
            self._pass = tf.function(
                self._forward_and_backward,
                jit_compile=True,
                autograph=False,
                reduce_retracing=True,
            )

    def fit(self, *args: Any, callbacks: Any = None, **kwargs: Any) -> keras.callbacks.History:
        """As in Keras; `callbacks` by keyword."""
        strategy = self.distribute_strategy

        @tf.function(autograph=False)
        def average():
            strategy.run(self._average_statistics)

        first = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: average())
        with _without_autotuning():
            return super().fit(*args, callbacks=[first, *(callbacks or [])], **kwargs)

    def _average_statistics(self):
        variables = [
            v for v in self.non_trainable_variables if keras.backend.is_float_dtype(v.dtype)
        ]
        if variables:
            # Identities: a variable's value has no device, which the sum goes by.
            local = [tf.identity(v.value) for v in variables]
            means = _over_replicas(tf.distribute.ReduceOp.MEAN, local)
            for variable, mean in zip(variables, means, strict=True):
                variable.assign(mean)

    def make_train_function(self, force: bool = False) -> None:
        """Makes what `fit` calls; with `steps_per_execution` a loop that Keras' own cannot do."""
        made = self.train_function is not None and not force
        super().make_train_function(force)
        if made or self.run_eagerly or self.steps_per_execution == 1:
            return
        steps, strategy = self.steps_per_execution, self.distribute_strategy

        def one_step(iterator):
            metrics = strategy.run(self.train_step, args=(iterator.get_next(),))
            return reduce_per_replica(metrics, strategy, reduction="auto")

        @tf.function(autograph=False, reduce_retracing=True)
        def several_steps(iterator):
            # The end of the data ends the loop, and with it the epoch.
            def body(step):
                one_step(iterator)
                return (step + 1,)

            tf.while_loop(lambda step: step < steps - 1, body, (0,), parallel_iterations=1)
            return one_step(iterator)

        self.train_function = several_steps

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step on this replica's share of a batch; returns the metrics so far."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        size = _size(x)
        y_pred, loss, gradients = self._pass(*_at_least_one(x, y, sample_weight, size))
        y_pred = keras.tree.map_structure(lambda scores: scores[:size], y_pred)

        share = self._record_loss(loss, y, y_pred, sample_weight, size)
        gradients = [tf.cast(share, gradient.dtype) * gradient for gradient in gradients]
        if _clips(self.optimizer):
            gradients = self._clipped(gradients)
        self.optimizer.apply(gradients, self.trainable_variables)
        return self._over_workers(self.compute_metrics(x, y, y_pred, sample_weight))

    def test_step(self, data: Any) -> dict[str, Any]:
        """Evaluates this replica's share of a batch; returns the metrics so far."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        size = _size(x)
        x_padded, y_padded, weight_padded = _at_least_one(x, y, sample_weight, size)
        y_pred = self(x_padded, training=False)
        loss = self._local_loss(x_padded, y_padded, y_pred, weight_padded, training=False)
        y_pred = keras.tree.map_structure(lambda scores: scores[:size], y_pred)
        self._record_loss(loss, y, y_pred, sample_weight, size)
        return self._over_workers(self.compute_metrics(x, y, y_pred, sample_weight))

    def _forward_and_backward(self, x, y, sample_weight):
        """Scores, and the mean loss of this replica's share with its gradients."""
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self._local_loss(x, y, y_pred, sample_weight, training=True)
            scaled = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        gradients = tape.gradient(scaled, variables)
        # Dense, those of an embedding too, so that they can be weighed; zeros where there is none.
        gradients = [
            tf.zeros(v.shape, v.dtype) if g is None else tf.convert_to_tensor(g)
            for g, v in zip(gradients, variables, strict=True)
        ]
        return y_pred, loss, gradients

    def _local_loss(self, x, y, y_pred, sample_weight, training):
        with losses.local_batches():
            loss = self._compute_loss(x, y, y_pred, sample_weight, training=training)
        # Keras has divided it by the number of replicas.
        return loss * _replicas()

    def _record_loss(self, loss, y, y_pred, sample_weight, size):
        """Adds the global batch's loss to its metric; returns this replica's share of the batch."""
        weight = self._batch_weight(y, y_pred, sample_weight, size)
        lost = tf.where(weight > 0, tf.cast(loss, tf.float32) * weight, 0.0)
        total = _sum_over_replicas(tf.stack([weight, lost]))
        self._loss_tracker.update_state(
            tf.math.divide_no_nan(total[1], total[0]), sample_weight=size
        )
        return tf.math.divide_no_nan(weight, total[0])

    def _batch_weight(self, y, y_pred, sample_weight, size):
        """What the mean over this replica's share has been divided by."""
        if getattr(self.loss, "reduction", None) == "mean_with_sample_weight":
            if isinstance(self.loss, losses.ClassWeightedLoss):
                return tf.reduce_sum(self.loss.example_weights(y, y_pred, sample_weight))
            if sample_weight is not None:
                return tf.reduce_sum(tf.cast(sample_weight, tf.float32))
        return tf.cast(size, tf.float32)

    def _clipped(self, gradients):
        total = _sum_over_replicas(gradients)
        # The optimizer sums over replicas once more, and by then there is nothing left to clip.
        return [gradient / _replicas() for gradient in self.optimizer._clip_gradients(total)]

    def _over_workers(self, metrics):
        # Under MultiWorkerMirroredStrategy Keras takes the mean over a first axis.
        if not is_multiworker(self.distribute_strategy):
            return metrics
        return keras.tree.map_structure(lambda value: tf.reshape(value, [1]), metrics)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Keras would average the replicas' batches, labels included.
        if iterator is not None:
            local = self.distribute_strategy.experimental_local_results
            for _, _, batches in iterator:
                data_batch = keras.tree.map_structure(lambda v: local(v)[0], next(batches))
                break
        super()._maybe_symbolic_build(data_batch=data_batch)


class ReplicatedModel(ReplicatedStep, keras.Model):
    """A functional Keras model with the step of `ReplicatedStep`.

    Args:
        inputs: As in `keras.Model`; to give this step to a functional model that there is,
            `ReplicatedModel(model.inputs, model.outputs)`, inside the scope it was made in.
        outputs: Likewise.
    """


@contextlib.contextmanager
def _without_autotuning():
    """Has iterators over several devices made without tf.data's autotuner.

    It ends an epoch only when its own thread next wakes, after 10 ms · 2^k, and the options of the
    dataset that is distributed do not reach them.
    """
    make = multi_device_iterator_ops._create_device_dataset
    options = tf.data.Options()
    options.autotune.enabled = False

    def make_untuned(*args, **kwargs):
        return make(*args, **kwargs).with_options(options)

    multi_device_iterator_ops._create_device_dataset = make_untuned
    try:
        yield
    finally:
        multi_device_iterator_ops._create_device_dataset = make


def _size(x):
    return tf.shape(next(part for part in keras.tree.flatten(x) if part is not None))[0]


def _at_least_one(x, y, sample_weight, size):
    """Puts an example of zeros that weighs nothing into an empty share.

    Layers that average over the batch would give NaN, and keep it in their moving statistics.
    """
    missing = tf.maximum(1 - size, 0)

    def padded(part):
        return tf.pad(part, [[0, missing]] + [[0, 0]] * (len(part.shape) - 1))

    if sample_weight is None:
        sample_weight = keras.tree.map_structure(lambda _: tf.ones([size]), y)
    return keras.tree.map_structure(
        lambda part: None if part is None else padded(part), (x, y, sample_weight)
    )


def _replicas():
    return tf.distribute.get_strategy().num_replicas_in_sync


def _sum_over_replicas(values):
    return _over_replicas(tf.distribute.ReduceOp.SUM, values)


def _over_replicas(how, values):
    return tf.distribute.get_replica_context().all_reduce(how, values)


def _clips(optimizer):
    return any(
        getattr(optimizer, name, None) is not None
        for name in ("clipnorm", "global_clipnorm", "clipvalue")
    )


# ----------------------------------------------------------------------------- the strategy


def has_accelerator() -> bool:
    """Whether there is a device other than a CPU."""
    return any(device.device_type != "CPU" for device in tf.config.list_physical_devices())


def is_multiworker(strategy: tf.distribute.Strategy) -> bool:
    """Whether a strategy spans several processes."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def make_strategy(
    name: str, *, replicas: int = 0, worker_timeout: int = 300
) -> tf.distribute.Strategy | None:
    """A strategy by name, over the accelerators of this machine, or its CPUs if it has none.

    Call it before anything is computed: machines must be joined first.

    Args:
        name: One of `STRATEGIES`. `"mirrored"`: the devices of one machine. `"multiworker"`: those
            of several, started each with the same command and its own `TF_CONFIG`.
        replicas: For `"mirrored"`: how many devices, the first ones; 0 for all.
        worker_timeout: For `"multiworker"`: seconds to wait for a machine, at the start and in
            each step, before giving up.

    Returns:
        The strategy; None for `"none"`. The same one each time for the same devices.

    Raises:
        ValueError: for an unknown name, devices that there are not, or a malformed `TF_CONFIG`.
        WorkerLostError: if a machine does not come.
    """
    if name not in STRATEGIES:
        raise ValueError(f"unknown strategy {name!r}; known: {', '.join(STRATEGIES)}.")
    if name == "mirrored":
        return _mirrored(replicas)
    if name == "multiworker":
        return _multiworker(worker_timeout)
    return None


def _mirrored(replicas):
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    devices = [device.name for device in tf.config.list_logical_devices(kind)]
    count = replicas or len(devices)
    if not 2 <= count <= len(devices):
        raise ValueError(
            f"strategy mirrored needs from 2 devices to as many as there are; this machine has "
            f"{len(devices)} ({kind}), and replicas={replicas or 'all'} was asked for."
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
                caller.settimeout(max(0.01, deadline - time.monotonic()))
                callers[int(caller.recv(16))] = caller
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
            "started on every worker, resumes after the last complete epoch."
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
