"""Image files in TensorFlow's graph: their size before they are decoded, and their pixels.

AutoGraph has nothing to convert here, and would take seconds for it.
"""

from __future__ import annotations

import tensorflow as tf

from keras_ldam.export import bmp
from keras_ldam.export.limits import (
    MAX_GIF_BLOCKS,
    MAX_IMAGE_PIXELS,
    MAX_JPEG_SCANS,
    MAX_PNG_TEXTS,
)


@tf.autograph.experimental.do_not_convert
def checked(contents: tf.Tensor) -> tf.Tensor:
    """Returns an image file; it is an error to use it if the image has too many pixels.

    A file of a few bytes can claim a size that fills the memory, and TensorFlow allocates it.

    Args:
        contents: JPEG, PNG, GIF, BMP or WebP, a string scalar; anything else is an error too.
    """
    return limited(contents, _size(contents))


def limited(contents: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns an image file, as `checked`, whose height and width, int64 `(2,)`, are known."""
    message = f"image has more than {MAX_IMAGE_PIXELS} pixels; its height and width are"
    right = tf.reduce_prod(size) <= MAX_IMAGE_PIXELS
    with tf.control_dependencies([tf.debugging.Assert(right, [message, size])]):
        return tf.identity(contents)


@tf.autograph.experimental.do_not_convert
def decode(contents: tf.Tensor, channels: int) -> tf.Tensor:
    """Decodes an image file as uint8 `(height, width, channels)`; of an animation its first frame.

    Args:
        contents: An image file, a string scalar.
        channels: 1, 3, or 4.
    """

    def directly() -> tf.Tensor:
        return tf.io.decode_image(contents, channels=channels, expand_animations=False)

    def in_own_colors() -> tf.Tensor:
        return tf.io.decode_image(contents, channels=0, expand_animations=False)[..., :3]

    def over_rgb() -> tf.Tensor:
        image = tf.cond(is_bmp, lambda: bmp.decode(contents), in_own_colors)
        image = tf.ensure_shape(image, [None, None, 3])
        return image if channels == 3 else tf.image.rgb_to_grayscale(image)

    if channels in (1, 3):
        head = _head(contents)
        is_bmp = _begins(head, b"BM")
        is_cmyk = tf.cond(
            tf.io.is_jpeg(contents),
            lambda: tf.equal(tf.io.extract_jpeg_shape(contents)[2], 4),
            lambda: tf.constant(False),
        )
        # TensorFlow decodes these to their own number of colors only.
        special = is_bmp | is_cmyk | _begins(head, b"GIF") | _begins(head, b"RIFF")
        image = tf.cond(special, over_rgb, directly)
    else:
        image = directly()
    image.set_shape([None, None, channels])
    return image


def _times(contents: tf.Tensor, *marks: bytes) -> tf.Tensor:
    """How often one of some marks stands in a file, int64; they are of one length."""
    data = tf.io.decode_raw(tf.strings.join([contents, b"\0" * len(marks[0])]), tf.uint8)
    last, total = tf.size(data) - len(marks[0]), tf.zeros([], tf.int64)
    for mark in marks:
        found = data[:last] == mark[0]
        for i, byte in enumerate(mark[1:], start=1):
            found &= data[i : last + i] == byte
        total += tf.shape(tf.where(found), out_type=tf.int64)[0]
    return total


def _size(contents: tf.Tensor) -> tf.Tensor:
    """Height and width, int64 `(2,)`."""
    head = _head(contents)

    def number(*places: int) -> tf.Tensor:  # Of the lowest byte first.
        return sum(head[place] * 256**i for i, place in enumerate(places))

    def jpeg() -> tf.Tensor:
        sides = tf.cast(tf.io.extract_jpeg_shape(contents)[:2], tf.int64)
        # Headers as they are for 1 to 4 colors: two bytes alone come by chance, in a video behind.
        headers = [bytes([0xFF, 0xDA, 0, 6 + 2 * colors, colors]) for colors in (1, 2, 3, 4)]
        scans = _times(contents, *headers)
        pixels = tf.minimum(tf.reduce_prod(sides), MAX_IMAGE_PIXELS)  # More have their own error.
        few = scans * pixels <= MAX_JPEG_SCANS * MAX_IMAGE_PIXELS
        message = "JPEG has too many scans for its size:"
        with tf.control_dependencies([tf.debugging.Assert(few, [message, scans])]):
            return tf.identity(sides)

    def png() -> tf.Tensor:
        texts = _times(contents, b"zTXt", b"iTXt", b"iCCP")
        message = f"PNG has more than {MAX_PNG_TEXTS} compressed texts:"
        few = tf.debugging.Assert(texts <= MAX_PNG_TEXTS, [message, texts])
        with tf.control_dependencies([few]):
            return tf.stack([number(23, 22, 21, 20), number(19, 18, 17, 16)])

    def bmp() -> tf.Tensor:
        sides = tf.stack([number(22, 23, 24, 25), number(18, 19, 20, 21)])
        return tf.abs(tf.cast(tf.cast(sides, tf.int32), tf.int64))  # A height below 0 is top-down.

    def canvas() -> tf.Tensor:  # Of a WebP with extra features, by the flags of byte 20.
        still = head[20] // 2 % 2 == 0
        # TensorFlow writes beyond its buffer when it decodes one without transparency.
        with tf.control_dependencies([tf.debugging.Assert(still, ["WebP must not be animated"])]):
            return tf.stack([number(27, 28, 29) + 1, number(24, 25, 26) + 1])

    def webp() -> tf.Tensor:
        return tf.case(
            [
                (_begins(head, b"VP8X", at=12), canvas),
                (
                    _begins(head, b"VP8L", at=12),
                    lambda: tf.stack([number(21, 22, 23, 24) // 2**14, number(21, 22)]) % 2**14 + 1,
                ),
            ],
            default=lambda: tf.stack([number(28, 29), number(26, 27)]) % 2**14,
        )

    def unknown() -> tf.Tensor:  # TensorFlow decodes JPEG XL, say, but its size is not read here.
        message = "Unknown image file format; it must be JPEG, PNG, GIF, BMP or WebP"
        empty = tf.equal(tf.strings.length(contents), 0)  # Decoding has a sentence for it.
        with tf.control_dependencies([tf.debugging.Assert(empty, [message])]):
            return tf.zeros([2], tf.int64)

    return tf.case(
        [
            (tf.io.is_jpeg(contents), jpeg),
            (_begins(head, b"\x89PNG"), png),
            (_begins(head, b"GIF"), lambda: _gif_size(contents)),
            (_begins(head, b"BM"), bmp),
            (_begins(head, b"RIFF"), webp),
        ],
        default=unknown,
    )


# As a graph the loop takes no time.
@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def _gif_size(contents: tf.Tensor) -> tf.Tensor:
    """Height and width of the canvas of all frames of a GIF, int64 `(2,)`.

    TensorFlow reads every frame, and allocates what the frames claim, not what the header says. A
    canvas of allowed size stands for the sum of the frames' pixels: they are returned as the height
    of an image one pixel wide.
    """
    zero, two = tf.constant(0, tf.int64), tf.constant(2, tf.int64)
    padding = 16  # So that every block begun can be read.
    data = tf.io.decode_raw(tf.strings.join([contents, b"\0" * padding]), tf.uint8)
    end = tf.size(data, tf.int64) - padding

    def byte(at: tf.Tensor | int) -> tf.Tensor:
        return tf.cast(data[at], tf.int64)

    def number(at: tf.Tensor) -> tf.Tensor:
        return byte(at) + 256 * byte(at + 1)

    def colors(at: tf.Tensor | int) -> tf.Tensor:
        flags = byte(at)
        return tf.where(flags < 128, tf.zeros_like(flags), 3 * 2 ** (flags % 8 + 1))

    def block(
        at: tf.Tensor, in_data: tf.Tensor, height: tf.Tensor, width: tf.Tensor, pixels: tf.Tensor
    ) -> list[tf.Tensor]:
        first = byte(at)
        is_frame, is_extension = (~in_data & (first == ord(sign)) for sign in ",!")
        size = tf.stack([number(at + 7), number(at + 5)])
        size = tf.where(is_frame, size, tf.zeros_like(size))
        length = tf.where(in_data, first + 1, tf.where(is_extension, two, end - at))
        length = tf.where(is_frame, 11 + colors(at + 9), length)
        return [
            at + length,
            ~in_data | (first > 0),
            tf.maximum(height, size[0]),
            tf.maximum(width, size[1]),
            pixels + size[0] * size[1],
        ]

    at, _, height, width, pixels = tf.while_loop(
        lambda at, *_: at < end,
        block,
        [13 + colors(10), tf.constant(False), zero, zero, zero],
        maximum_iterations=MAX_GIF_BLOCKS,
    )
    message = f"GIF has more than {MAX_GIF_BLOCKS} blocks"
    with tf.control_dependencies([tf.debugging.Assert(at >= end, [message])]):
        fits = height * width <= MAX_IMAGE_PIXELS
        return tf.where(fits, tf.stack([pixels, 1]), tf.stack([height, width]))


def _head(contents: tf.Tensor) -> tf.Tensor:
    """The first bytes of a file, and zeros where it ends before, int64 `(30,)`."""
    head = tf.strings.substr(tf.strings.join([contents, b"\0" * 30]), 0, 30)
    return tf.cast(tf.ensure_shape(tf.io.decode_raw(head, tf.uint8), [30]), tf.int64)


def _begins(head: tf.Tensor, magic: bytes, *, at: int = 0) -> tf.Tensor:
    return tf.reduce_all(head[at : at + len(magic)] == list(magic))
