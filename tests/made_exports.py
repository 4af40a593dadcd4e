"""Small exported models, of images with random weights, and a file that is dangerous to them."""

import struct
import zlib
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import keras_ldam


def of_digits(folder: Path) -> Path:
    """Exports a model of gray images of 8 × 8 pixels, ten classes; returns the version's folder."""
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    outputs = keras.layers.Dense(10, kernel_initializer=keras.initializers.GlorotUniform(1))(x)
    model = keras.Model(inputs, outputs)
    return keras_ldam.export_saved_model(model, folder / "digits", class_names=list("0123456789"))


def of_any_size(folder: Path) -> Path:
    """Exports a model of color images of any size in two classes; returns the version's folder."""
    inputs = keras.Input((None, None, 3))
    x = keras.layers.GlobalAveragePooling2D()(inputs)
    outputs = keras.layers.Dense(2, kernel_initializer=keras.initializers.GlorotUniform(1))(x)
    model = keras.Model(inputs, outputs)
    return keras_ldam.export_saved_model(model, folder / "any_size", class_names=list("ab"))


def of_pixels(folder: Path) -> Path:
    """Exports a model of color images of any size with a class for each pixel; its folder."""
    inputs = keras.Input((None, None, 3))
    outputs = keras.layers.Dense(2, kernel_initializer=keras.initializers.GlorotUniform(1))(inputs)
    model = keras.Model(inputs, outputs)
    return keras_ldam.export_saved_model(model, folder / "pixels", class_names=list("ab"))


def of_rows(folder: Path) -> Path:
    """Exports a model of rows with the columns "size (cm)" and "class"; returns its folder.

    Its first score is the size, its second the length of the class's name; 0 where it is missing.
    """
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Identity()(inputs))

    def encode(columns):
        size, length = columns["size (cm)"], tf.strings.length(columns["class"])
        size = tf.where(tf.math.is_nan(size), 0.0, size)
        return tf.stack([size, tf.cast(length, tf.float32)], axis=1)

    return keras_ldam.export_saved_model(
        model,
        folder / "rows",
        class_names=["large", "long"],
        columns={"size (cm)": "number", "class": "text"},
        encode=encode,
    )


def small_model(units: int = 2, shape: tuple[int, ...] = (4, 4, 1)) -> keras.Model:
    """Returns a model of images in this many classes, with random weights."""
    inputs = keras.Input(shape, dtype="uint8")
    features = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    return keras.Model(inputs, keras_ldam.CosineDense(units)(features))


def png(image: np.ndarray) -> bytes:
    """Returns the PNG file of an image of shape (height, width, channels), uint8."""
    return tf.io.encode_png(image).numpy()


def claimed_png(side: int) -> bytes:
    """Returns a PNG of a few bytes that claims to be a square of this size in pixels."""

    def chunk(kind: bytes, contents: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + contents))
        return struct.pack(">I", len(contents)) + kind + contents + check

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")
