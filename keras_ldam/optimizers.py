"""What Keras' own optimizers lack for the published recipes."""

from __future__ import annotations

import numbers
from typing import Any

import keras
from keras import ops

from keras_ldam import keras_internals
from keras_ldam.counts import check_flag, check_range


@keras.saving.register_keras_serializable(package="keras_ldam")
class MomentumSGD(keras.optimizers.Optimizer):
    """Gradient descent with momentum and weight decay as the published recipes define them.

    For a variable w with gradient g and velocity v, every step is

        g = g + coupled_weight_decay * w
        v = momentum * v + g
        w = w - learning_rate * v, or w - learning_rate * (g + momentum * v) with `nesterov`

    Use it where a recipe from PyTorch is to be followed. Two things differ from
    `keras.optimizers.SGD`:

    - The velocity does not contain the learning rate. Keras' does
      (`v = momentum * v - learning_rate * g`), so after a drop of the rate by 100 the steps
      stay up to 100 times too large until the old velocity has died away.
    - Weight decay is coupled: it is part of the gradient and passes through the momentum.
      Keras' `weight_decay` is decoupled. The coupled decay acts on every trainable variable,
      those of normalization layers and biases included.

    Clipping, where asked for, acts on the gradient before the decay is added.

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`, or a
            callable without arguments. Defaults to 0.1.
        momentum: Float in [0, 1). Defaults to 0.9.
        nesterov: Whether to step by Nesterov's momentum, in PyTorch's form. Defaults to `False`.
        coupled_weight_decay: Float, 0 or more. A decay of c has the same gradient as the
            penalty c/2 · ‖w‖², that is `keras.regularizers.L2(c / 2)`.
            Defaults to 0.
        **kwargs: Further arguments of `keras.optimizers.Optimizer`, such as `clipnorm` or
            `use_ema`; not `weight_decay`.

    Raises:
        ValueError: If `momentum` or `coupled_weight_decay` is out of range, or if
            `weight_decay` is given.

    Example:

    >>> import numpy as np
    >>> weight = keras.Variable([1.0])
    >>> optimizer = MomentumSGD(0.1, momentum=0.9, coupled_weight_decay=0.0)
    >>> for gradient in (1.0, 1.0):
    ...     optimizer.apply([np.array([gradient], "float32")], [weight])
    >>> round(float(weight[0]), 4)  # 1 - 0.1 * 1 - 0.1 * 1.9
    0.71

    References:

    - [Sutskever et al., 2013](https://proceedings.mlr.press/v28/sutskever13.html)
    - [Loshchilov and Hutter, 2019](https://arxiv.org/abs/1711.05101): coupled and decoupled
      weight decay
    """

    def __init__(
        self,
        learning_rate: Any = 0.1,
        *,
        momentum: float = 0.9,
        nesterov: bool = False,
        coupled_weight_decay: float = 0.0,
        **kwargs: Any,
    ) -> None:
        real = isinstance(momentum, numbers.Real)
        if not (real and 0 <= momentum < 1):
            raise ValueError(f"`momentum` must be a number in [0, 1). Received: {momentum!r}")
        check_flag("nesterov", nesterov)
        check_range("coupled_weight_decay", coupled_weight_decay, 0, float("inf"))
        if kwargs.get("weight_decay") is not None:
            raise ValueError(
                "`weight_decay` is decoupled and not supported here; use "
                f"`coupled_weight_decay`. Received: weight_decay={kwargs['weight_decay']}"
            )
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.momentum, self.nesterov = float(momentum), bool(nesterov)
        self.coupled_weight_decay = float(coupled_weight_decay)

    def build(self, variables: list[keras.Variable]) -> None:
        """Creates one velocity per variable."""
        if self.built:
            return
        super().build(variables)
        self._velocities = self.add_optimizer_variables(variables, "velocity")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Moves one variable by one step."""
        gradient = ops.cast(gradient, variable.dtype)
        learning_rate = ops.cast(learning_rate, variable.dtype)
        velocity = self._velocities[keras_internals.variable_index(self, variable)]
        if self.coupled_weight_decay and keras_internals.decays(self, variable):
            gradient = ops.add(gradient, ops.multiply(variable, self.coupled_weight_decay))
        if keras.backend.backend() == "tensorflow":
            _apply_momentum(
                variable, velocity, gradient, learning_rate, self.momentum, self.nesterov
            )
            return
        step = ops.add(ops.multiply(velocity, self.momentum), gradient)
        self.assign(velocity, step)
        if self.nesterov:
            step = ops.add(ops.multiply(step, self.momentum), gradient)
        self.assign_sub(variable, ops.multiply(step, learning_rate))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal optimizer."""
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "coupled_weight_decay": self.coupled_weight_decay,
        }


def _apply_momentum(
    variable: Any,
    velocity: Any,
    gradient: Any,
    learning_rate: Any,
    momentum: float,
    nesterov: bool,
) -> None:
    """The update in one operation of TensorFlow.

    Written out it becomes a dozen for every variable, a thousand and more a step for a network
    of a hundred variables, and each takes its turn between the convolutions.
    """
    import tensorflow as tf

    # Under a strategy the optimizer is given the variables of one replica, not Keras' own.
    variable, velocity = (
        v.value if isinstance(v, keras.Variable) else v for v in (variable, velocity)
    )
    tf.raw_ops.ResourceApplyMomentum(
        var=variable.handle,
        accum=velocity.handle,
        lr=learning_rate,
        grad=tf.convert_to_tensor(gradient),
        momentum=tf.constant(momentum, variable.dtype),
        use_nesterov=nesterov,
    )
