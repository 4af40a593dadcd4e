"""Sharpness-aware minimization."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ldam import counts as class_counts
from keras_ldam.wrappers.two_passes import TwoPasses


@keras.saving.register_keras_serializable(package="keras_ldam")
class SharpnessAwareTraining(TwoPasses):
    """Trains a model by the gradient at the worst place near its weights (SAM).

    A step takes the gradient g of the batch at the weights w, moves to w + ρ g / ‖g‖₂, takes the
    gradient there, goes back, and steps by the second gradient with whatever optimizer the model is
    compiled with. The norm is that of all trainable weights together. The minima found this way are
    flat: small changes of the weights raise the loss little. On long-tailed images the gain was
    reported to be largest for the rare classes, whose minima under re-weighting are the sharpest.

    A step costs two forward and two backward passes, and nothing changes at prediction. Dropout and
    augmentation inside the model are drawn anew in the second pass. Weight decay of the optimizer
    is in neither gradient. `loss` and the metrics of `fit` are those at w, and so are the moving
    statistics of batch normalization.

    The wrapped model shares its variables, so train the wrapper and then use, save or export the
    model itself. Under a `tf.distribute` strategy use
    `keras_ldam.distribution.ReplicatedSharpnessAwareTraining`; on JAX several devices need nothing
    more.

    Args:
        model: A model, built.
        rho: Length ρ of the move, in the units of the weights, above 0. 0.05 to 0.2 are usual
            without class weights; with deferred weights on CIFAR 0.5 to 0.8 were better.
        **kwargs: Further arguments of `keras.Model`.

    Raises:
        ValueError: if `rho` is not as described, or `model` is not built.

    Example:

    >>> import numpy as np
    >>> model = keras.Sequential([keras.Input((4,)), keras_ldam.CosineDense(2)])
    >>> trained = SharpnessAwareTraining(model, rho=0.1)
    >>> trained.compile(keras.optimizers.SGD(0.1), loss=keras_ldam.LDAM([3, 1]))
    >>> x, y = np.eye(4), np.array([0, 0, 0, 1])
    >>> history = trained.fit(x, y, verbose=0)
    >>> model.predict(x, verbose=0).shape
    (4, 2)

    References:
        Foret et al., 2021, "Sharpness-Aware Minimization for Efficiently Improving
        Generalization"; Rangwani et al., 2022, "Escaping Saddle Points for Effective Generalization
        on Class-Imbalanced Data", for long tails.
    """

    def __init__(self, model: keras.Model, *, rho: float = 0.05, **kwargs: Any) -> None:
        class_counts.check_range("rho", rho, 0, 1e6, open_low=True)
        if not getattr(model, "built", False):
            raise ValueError(f"`model` must be a built Keras model. Received: {model!r}")
        super().__init__(model, model.__call__, **kwargs)
        self.rho = float(rho)

    def _second(self, gradients: list[Any], slopes: list[Any]) -> tuple[list[Any], list[Any]]:
        floats = [ops.cast(gradient, "float32") for gradient in gradients]
        # Divided by the largest first, so that no square is lost, as under loss scaling.
        largest = ops.max(ops.stack([ops.max(ops.abs(g)) for g in floats]))
        floats = [g / ops.maximum(largest, 1e-37) for g in floats]
        squares = ops.stack([ops.sum(ops.square(g)) for g in floats])
        factor = self.rho / ops.maximum(ops.sqrt(ops.sum(squares)), 1e-37)
        moves = [
            ops.cast(factor * g, gradient.dtype)
            for g, gradient in zip(floats, gradients, strict=True)
        ]
        return moves, []

    def _total(self, first: Any, second: Any) -> Any:
        return second

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal wrapper."""
        return {**super().get_config(), "rho": self.rho}
