"""Training on several devices or machines: strategies by name, and a step that XLA can compile.

    strategy = make_strategy("mirrored")
    with strategy.scope():
        model = ReplicatedModel(inputs, outputs)
        model.compile(optimizer, loss=keras_ldam.LDAM(counts), jit_compile=True)
    model.fit(dataset)  # Batches of the global size.

It needs Keras' TensorFlow backend, and raises `MissingExtraError` without TensorFlow.
"""

from keras_ldam.cluster import Cluster, WorkerLostError
from keras_ldam.distribution.step import (
    ReplicatedAdversarialTraining,
    ReplicatedModel,
    ReplicatedSharpnessAwareTraining,
    ReplicatedStep,
)
from keras_ldam.distribution.strategies import (
    STRATEGIES,
    distribute,
    is_multiworker,
    make_strategy,
    naming_lost_workers,
)

__all__ = [
    "STRATEGIES",
    "Cluster",
    "ReplicatedAdversarialTraining",
    "ReplicatedModel",
    "ReplicatedSharpnessAwareTraining",
    "ReplicatedStep",
    "WorkerLostError",
    "distribute",
    "is_multiworker",
    "make_strategy",
    "naming_lost_workers",
]
