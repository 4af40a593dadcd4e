"""Batch normalization that is fast on the TensorFlow backend."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_ldam")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization of images in one operation where TensorFlow is the backend.

    Drop-in for `keras.layers.BatchNormalization`: same arguments, same configuration, same
    variables in the same order, so `get_weights` and `set_weights` exchange weights between
    the two. Use it in convolutional networks, where Keras' layer, a dozen element-wise
    operations in float32, takes up to half of the training step on a CPU.

    What differs from Keras' layer, on the TensorFlow backend:

    - bfloat16 and float16 images are read and written as they are; statistics, scale and
      offset stay in float32.
    - The moving variance is fed with the unbiased variance of the batch (divided by
      n - 1), as in PyTorch; the batch itself is normalized with the biased one, as
      everywhere.

    Inputs that are not four-dimensional with channels last, float64, masks, `renorm` and
    `synchronized` fall back on Keras' layer, as do the other backends.

    Args:
        **kwargs: The arguments of `keras.layers.BatchNormalization`. For PyTorch's defaults
            give `momentum=0.9, epsilon=1e-5`.

    Example:

    >>> import numpy as np
    >>> layer = FusedBatchNormalization(momentum=0.9, epsilon=1e-5)
    >>> images = np.random.default_rng(0).normal(3.0, 2.0, (8, 4, 4, 2)).astype("float32")
    >>> outputs = layer(images, training=True)
    >>> abs(float(keras.ops.mean(outputs))) < 1e-5
    True

    References:

    - [Ioffe and Szegedy, 2015](https://arxiv.org/abs/1502.03167)
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalizes with the statistics of the batch in training, else with the moving ones."""
        if mask is not None or not self._is_fusible(inputs):
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        channels = (inputs.shape[-1],)
        training = bool(training and self.trainable)
        moving_mean = ops.cast(self.moving_mean, "float32")
        moving_variance = ops.cast(self.moving_variance, "float32")
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=ops.cast(self.gamma, "float32") if self.scale else tf.ones(channels),
            offset=ops.cast(self.beta, "float32") if self.center else tf.zeros(channels),
            mean=moving_mean,
            variance=moving_variance,
            epsilon=self.epsilon,
            exponential_avg_factor=1.0 - self.momentum,
            is_training=training,
        )
        if training:
            # In training the operation returns the moving statistics, already updated.
            self.moving_mean.assign(ops.cast(mean, self.moving_mean.dtype))
            self.moving_variance.assign(ops.cast(variance, self.moving_variance.dtype))
        return outputs

    def _is_fusible(self, inputs: Any) -> bool:
        return (
            keras.backend.backend() == "tensorflow"
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and keras.backend.standardize_dtype(inputs.dtype) in ("float32", "bfloat16", "float16")
            and not getattr(self, "renorm", False)  # Newer than the oldest Keras that will do.
            and not self.synchronized
        )
