"""BMP files with a palette, which TensorFlow's decoder takes for gray images."""

from __future__ import annotations

import tensorflow as tf

_HEAD = 66
"""Length of a header with masks."""


def decode(contents: tf.Tensor) -> tf.Tensor:
    """Decodes a BMP file as uint8 `(height, width, 3)`.

    Args:
        contents: An uncompressed BMP with 1, 4, 8, 24 or 32 bits a pixel, a string scalar.
            TensorFlow misreads others; they are refused.
    """
    head = tf.strings.substr(tf.strings.join([contents, b"\0" * _HEAD]), 0, _HEAD)
    head = tf.cast(tf.ensure_shape(tf.io.decode_raw(head, tf.uint8), [_HEAD]), tf.int64)

    def number(at: int, size: int) -> tf.Tensor:  # Of the lowest byte first.
        return tf.reduce_sum(head[at : at + size] * [256**place for place in range(size)])

    bits, compression = number(28, 2), number(30, 4)
    blue_first = tf.reduce_all(head[54:66] == list(bytes.fromhex("0000ff0000ff0000ff000000")))
    plain = (compression == 0) | ((compression == 3) & (bits == 32) & blue_first)
    known = tf.reduce_any(bits == [1, 4, 8, 24, 32]) & plain & (number(14, 4) >= 40)
    message = (
        "BMP must be uncompressed with 1, 4, 8, 24 or 32 bits a pixel; its bits and compression are"
    )

    def palette_image() -> tf.Tensor:
        width, height = number(18, 4), tf.cast(tf.cast(number(22, 4), tf.int32), tf.int64)
        rows = tf.abs(height)  # A height below 0 is top-down.
        colors = tf.where(number(46, 4) == 0, 2**bits, number(46, 4))
        # Not beyond the end: the error would quote the whole file.
        length = tf.cast(tf.strings.length(contents), tf.int64)
        palette = tf.strings.substr(contents, tf.minimum(14 + number(14, 4), length), 4 * colors)
        palette = tf.reshape(tf.io.decode_raw(palette, tf.uint8), (-1, 4))[:, 2::-1]
        row = (width * bits + 31) // 32 * 4
        pixels = tf.strings.substr(contents, tf.minimum(number(10, 4), length), row * rows)
        pixels = tf.io.decode_raw(pixels, tf.uint8)
        size = tf.size(pixels, tf.int64)
        whole = tf.debugging.Assert(size == row * rows, ["BMP is cut off; bytes of pixels:", size])
        with tf.control_dependencies([whole]):
            pixels = tf.reshape(pixels, (rows, row, 1))
        # The first pixel of a byte is in its highest bits.
        shifts = tf.cast(tf.range(8 - bits, -1, -bits), tf.uint8)
        pixels = tf.bitwise.right_shift(pixels, shifts)
        pixels = tf.bitwise.bitwise_and(pixels, tf.cast(2**bits - 1, tf.uint8))
        pixels = tf.reshape(pixels, (rows, -1))[:, :width]
        pixels = tf.where(height > 0, pixels[::-1], pixels)
        return tf.gather(palette, tf.cast(pixels, tf.int32))

    with tf.control_dependencies(
        [tf.debugging.Assert(known, [message, tf.stack([bits, compression])])]
    ):
        image = tf.cond(bits <= 8, palette_image, lambda: tf.io.decode_bmp(contents)[..., :3])
    return tf.ensure_shape(image, [None, None, 3])
