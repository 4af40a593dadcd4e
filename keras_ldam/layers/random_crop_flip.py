"""Random changes to training images, inside the compiled step."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ldam.counts import check_whole


@keras.saving.register_keras_serializable(package="keras_ldam")
class RandomCropFlip(keras.layers.Layer):
    """Shifts and mirrors each training image at random; the CIFAR augmentation.

    Every image is padded with zeros on all four sides, a window of the original size is cut
    out of it at a random place, and with probability one half it is mirrored left to right.
    Window and mirror are drawn for each image separately. Outside training the images pass
    through unchanged.

    Put it before the normalization: there, zero is black, as in the published recipe.

    The random state is saved with the model and its weights, so a run that is resumed
    continues with the draws it would have made.

    Args:
        padding: Pixels added on each side, 0 or more. Defaults to 4.
        seed: Integer, or `None` for a random one. Defaults to `None`.
        **kwargs: Further arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Images of any type, shape `(batch, height, width, channels)`, or one image without
            the first axis, as in `tf.data.Dataset.map`, where it needs the TensorFlow backend;
            height, width and channels must be known.
        training: Whether to change the images. Defaults to no.

    Returns:
        Images of the same shape and type.

    Raises:
        ValueError: if `padding` is not a whole number of at least 0, or for images of another
            shape or of unknown size.

    Example:

    >>> import numpy as np
    >>> images = np.zeros((2, 32, 32, 3), "uint8")
    >>> RandomCropFlip(padding=4, seed=0)(images, training=True).shape == (2, 32, 32, 3)
    True

    References:

    - [He et al., 2016](https://arxiv.org/abs/1512.03385), section 4.2
    """

    def __init__(self, *, padding: int = 4, seed: int | None = None, **kwargs: Any) -> None:
        check_whole("padding", padding, 0)
        super().__init__(**{"autocast": False, **kwargs})  # Pixels stay what they are.
        self.padding = int(padding)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the images, each shifted and perhaps mirrored while training."""
        if not training:
            return inputs
        shape = tuple(inputs.shape)
        if len(shape) not in (3, 4) or None in shape[-3:]:
            raise ValueError(
                "Images must have shape (batch, height, width, channels), or one image (height, "
                "width, channels), of known size, which `set_shape` tells TensorFlow. Received: "
                f"shape {shape}"
            )
        if len(shape) == 3:
            return self.call(ops.expand_dims(inputs, 0), training)[0]
        batch = ops.shape(inputs)[0]
        height, width, channels = inputs.shape[1:]
        padding = self.padding
        top, left = ops.split(
            keras.random.randint((2, batch, 1, 1), 0, 2 * padding + 1, seed=self.seed_generator),
            2,
        )
        mirror = keras.random.randint((batch, 1, 1), 0, 2, seed=self.seed_generator)

        # One gather of whole pixels does it all: crop and mirror are only arithmetic on the
        # index, which is far cheaper than moving the pixels twice.
        row = top[0] + ops.reshape(ops.arange(height, dtype="int32"), (1, height, 1))
        column = ops.reshape(ops.arange(width, dtype="int32"), (1, 1, width))
        column = left[0] + ops.where(mirror == 1, width - 1 - column, column)
        image = ops.reshape(ops.arange(batch, dtype="int32"), (-1, 1, 1))
        padded_height, padded_width = height + 2 * padding, width + 2 * padding
        index = (image * padded_height + row) * padded_width + column

        padded = ops.pad(inputs, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        return ops.take(ops.reshape(padded, (-1, channels)), index, axis=0)

    def save_own_variables(self, store: Any) -> None:
        """Saves the random state, which Keras leaves out for every layer."""
        store["seed_generator_state"] = ops.convert_to_numpy(self.seed_generator.state.value)

    def load_own_variables(self, store: Any) -> None:
        """Restores the random state."""
        self.seed_generator.state.assign(store["seed_generator_state"])

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape unchanged."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal layer."""
        return {**super().get_config(), "padding": self.padding, "seed": self.seed}
