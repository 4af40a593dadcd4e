"""Layers: the cosine head that a margin is measured on."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ldam.counts import check_flag, check_range, check_whole
from keras_ldam.sharding import check_sharded

_FEW_CLASSES = 10
"""Up to so many classes the default constant is 1, and 5 for more, as `benchmarks/networks.py`
finds it: with 1 the features of 100 classes shrink to nothing beside random class vectors."""
_LONG = 1e30
"""Squared length from which on vectors are shortened before they are normalized."""
_SHORT = 1e-12
"""The least `epsilon`: 1/ε³, which is in the gradient, must be a float32."""


@keras.saving.register_keras_serializable(package="keras_ldam")
class CosineDense(keras.layers.Layer):
    """The cosine between the features and each class's vector.

    Make it the last layer before `LDAM`: with unbounded logits the network can satisfy any margin
    by growing its weights. With u = (x, c), the features and a constant, and v_j = (w_j, b_j),

    z_j = ⟨u, v_j⟩ / (‖u‖ ‖v_j‖) ∈ [-1, 1].

    With `use_bias=False` the cosine is that of x and w_j alone, as in the paper and the official
    code. That discards the length of x, and with it all that distinguishes the examples in a new
    network: behind a ReLU or a pooling layer all features point the same way, and many networks
    need hundreds of steps to leave the most frequent class, or never do. The constant also bounds
    the gradient, which grows with 1/‖x‖ otherwise. Where features are much longer than c, as in a
    ResNet, both are nearly the same.

    It computes in float32 under every global precision policy, and refuses a `dtype` of less: in
    bfloat16 cosines have steps of 1/256, and the softmax multiplies them by s.

    Args:
        units: Number of classes K, at least 1.
        epsilon: Vectors shorter than this count as zero: cosine 0, gradient 0 (not infinite, as
            that of 1/‖x‖ would be where every feature is off). Values below 1e-12 are raised to it.
        use_bias: Whether the features get a constant as one more coordinate, and the class vectors
            a bias. `False` is the head of the paper.
        constant: That coordinate, c > 0; of no effect without a bias. By default 1 for up to 10
            classes, and 5 for more. Features that are shorter than c keep their length in the
            scores. With c = 1 the features of many classes stay very short, or vanish, as long as
            the class vectors are random.
        kernel_initializer: Initializer of the class vectors, shape `(features, units)`. By default
            uniform directions of length 1, as in the official code.
        bias_initializer: Initializer of the biases b_j, shape `(units,)`.
        kernel_regularizer: Optional regularizer of the w_j.
        scale: Scale s of the softmax that the cosines are trained with, to be kept with the model;
            `with_probabilities` and `export_saved_model` read it. It does not change the outputs:
            `LDAM` multiplies by its own scale.
        **kwargs: `name`, `dtype` and so on, as for every Keras layer.

    Call arguments:
        inputs: Features, shape `(…, features)`.

    Returns:
        float32 tensor of shape `(…, units)`; a mask of the inputs is passed on. NaN in an example
        gives NaN.

    Raises:
        ValueError: if `units` is not a whole number of at least 1, `dtype` computes in less than
            float32, or the number of features is unknown.

    Example:

    >>> import numpy as np
    >>> tuple(CosineDense(3)(np.ones((2, 8))).shape)
    (2, 3)

    References:
        Cao et al., 2019, appendix B; Wang et al., 2018, "Additive Margin Softmax for Face
        Verification".
    """

    def __init__(
        self,
        units: int,
        *,
        epsilon: float = 1e-6,
        use_bias: bool = True,
        constant: float | None = None,
        kernel_initializer: Any = "keras_ldam>UnitColumns",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        scale: float | None = None,
        **kwargs: Any,
    ):
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.supports_masking = True
        check_whole("units", units, 1)
        self.units: int = int(units)
        check_range("epsilon", epsilon, 0, 1)
        self.epsilon: float = max(float(epsilon), _SHORT)
        check_flag("use_bias", use_bias)
        self.use_bias: bool = bool(use_bias)
        if constant is None:
            constant = 1.0 if self.units <= _FEW_CLASSES else 5.0
        check_range("constant", constant, 0, 1e6, open_low=True)
        self.constant: float = float(constant)
        if scale is not None:
            check_range("scale", scale, 0, 1e6, open_low=True)
        self.scale: float | None = None if scale is None else float(scale)
        if self.compute_dtype in ("float16", "bfloat16"):
            raise ValueError(
                "`CosineDense` computes in float32, since cosines in half precision have too few "
                "steps; leave its `dtype` out, under a mixed precision policy too. Received: "
                f"dtype={self.compute_dtype!r}"
            )
        self.kernel_initializer: Any = keras.initializers.get(kernel_initializer)
        self.bias_initializer: Any = keras.initializers.get(bias_initializer)
        self.kernel_regularizer: Any = keras.regularizers.get(kernel_regularizer)

    def build(self, input_shape: Any) -> None:
        """Creates the class vectors."""
        if input_shape[-1] is None:
            raise ValueError(
                "`CosineDense` needs to know the number of features. Received: inputs of shape "
                f"{tuple(input_shape)}"
            )
        check_sharded(self.units)
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: input_shape[-1]})
        self.kernel = self.add_weight(
            shape=(input_shape[-1], self.units),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            name="kernel",
        )
        if self.use_bias:
            self.bias = self.add_weight(
                shape=(self.units,), initializer=self.bias_initializer, name="bias"
            )

    def call(self, inputs: Any) -> Any:
        """Returns the cosines."""
        kernel = ops.convert_to_tensor(self.kernel)
        if self.use_bias:
            kernel = ops.concatenate([kernel, ops.convert_to_tensor(self.bias)[None]], axis=0)
        return ops.matmul(self.unit_features(inputs), self._unit(kernel, 0))

    def unit_features(self, inputs: Any) -> Any:
        """Returns u / ‖u‖, shape `(…, features + 1)`, or without a bias `(…, features)`."""
        inputs = ops.cast(inputs, self.compute_dtype)
        if self.use_bias:
            constant = ops.full_like(inputs[..., :1], self.constant)
            inputs = ops.concatenate([inputs, constant], axis=-1)
        return self._unit(inputs, -1)

    def _unit(self, vectors: Any, axis: int) -> Any:
        squares = ops.sum(ops.square(vectors), axis=axis, keepdims=True)
        # Squares of vectors this long would overflow; a cosine does not depend on the length.
        # In two steps, since the reciprocal of the longest float32 is less than the shortest.
        longest = ops.stop_gradient(ops.max(ops.abs(vectors), axis=axis, keepdims=True))
        root = ops.where(squares > _LONG, ops.sqrt(longest), 1.0)
        vectors = vectors / root / root
        squares = ops.sum(ops.square(vectors), axis=axis, keepdims=True)
        floor = self.epsilon**2
        unit = vectors * ops.rsqrt(ops.maximum(squares, floor))
        # So that NaN, of which no comparison is true, is not taken for a short vector.
        return ops.where(squares <= floor, 0.0, unit)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """Returns the shape with the classes on the last axis."""
        return (*input_shape[:-1], self.units)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> CosineDense:
        """Makes a layer of its arguments; one that was saved before there was a bias has none."""
        return cls(**{"use_bias": False, "constant": 1.0, **config})

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal layer."""
        return {
            **super().get_config(),
            "units": self.units,
            "epsilon": self.epsilon,
            "use_bias": self.use_bias,
            "constant": self.constant,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "scale": self.scale,
        }


@keras.saving.register_keras_serializable(package="keras_ldam")
class UnitColumns(keras.initializers.Initializer):
    """Columns of length 1, drawn from uniform(-1, 1) in each coordinate and then normalized.

    The length does not change a cosine, but it sets how far a gradient step or weight decay turns
    the vector, so it is kept as in the official code.

    Args:
        seed: Optional whole number for the same columns each time.
    """

    def __init__(self, seed: int | None = None):
        self.seed = seed

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """Returns the columns, shape `(features, units)`."""
        seed = keras.random.SeedGenerator(self.seed) if self.seed is None else self.seed
        columns = keras.random.uniform(shape, -1.0, 1.0, dtype=dtype or "float32", seed=seed)
        norm = ops.sqrt(ops.sum(ops.square(columns), axis=0, keepdims=True))
        return columns / ops.maximum(norm, 1e-12)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal initializer."""
        return {"seed": self.seed}
