"""Images that are read from disk as they are needed: decoding, cropping, checking, streaming.

Only the index, names and labels, stays in memory. An image is read, decoded, scaled and cropped
inside tf.data, in parallel, in an order and with random crops that depend on seed and epoch alone.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_ldam.experiments.datasets.data import Split
from keras_ldam.experiments.datasets.sampling import Batches, Bilateral
from keras_ldam.export import image_files
from keras_ldam.export.limits import MAX_IMAGE_PIXELS
from keras_ldam.hardware import cores

EXTENSIONS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")
"""Endings, in lower case, of the names of image files."""

_MARGIN = 256 / 224
"""Shorter side of the scaled image over the side of the square that is cropped from it."""

# A file that begins and ends like this is not examined further before training.
_ENDS = ((b"\xff\xd8\xff", b"\xff\xd9"), (b"\x89PNG\r\n\x1a\n", b"IEND"))
_TAIL = 64
_KEPT_BATCHES = 64
_PREFETCHED = 4


# ----------------------------------------------------------------------------- one image


def scaled_side(image_size: int) -> int:
    """Shorter side that an image is scaled to before it is cropped to `image_size`: 256 for 224."""
    return round(image_size * _MARGIN)


@tf.autograph.experimental.do_not_convert
def center_image(contents: tf.Tensor, image_size: int) -> tf.Tensor:
    """Decodes an image for evaluation: scales its shorter side to 8/7 of `image_size`, and crops.

    Args:
        contents: An encoded image, a string scalar: JPEG, PNG, GIF (its first frame), uncompressed
            BMP, or WebP without animation, of at most `MAX_IMAGE_PIXELS`. Gray, CMYK, palette and
            16-bit images become 8-bit RGB. Transparency is dropped (transparent pixels of a GIF are
            black), and rotation in EXIF data is ignored.
        image_size: Side of the square at the center, in pixels.

    Returns:
        uint8 tensor, shape `(image_size, image_size, 3)`.

    Raises:
        tf.errors.InvalidArgumentError: if the contents cannot be decoded whole.
    """
    return _scaled_square(image_files.checked(contents), image_size, None)


def random_image(contents: tf.Tensor, image_size: int, drawn: tf.Tensor) -> tf.Tensor:
    """Decodes an image for training: scaled as by `center_image`, cropped and flipped at random.

    Args:
        contents: An encoded image, as for `center_image`.
        image_size: Side of the square, in pixels.
        drawn: Random numbers in [0, 1) for the square's row, its column and the flip, float32,
            shape `(3,)`.

    Returns:
        uint8 tensor, shape `(image_size, image_size, 3)`.

    Raises:
        tf.errors.InvalidArgumentError: if the contents cannot be decoded whole.
    """
    return _random_square(image_files.checked(contents), image_size, drawn)


def _random_square(contents, image_size, drawn):
    square = _scaled_square(contents, image_size, drawn[:2])
    return tf.cond(drawn[2] < 0.5, lambda: square, lambda: tf.reverse(square, [1]))


def _scaled_square(contents, image_size, drawn):
    """The square at `drawn`, as shares of the free height and width, or at the center."""
    image, scale, offset = tf.cond(
        tf.io.is_jpeg(contents),
        lambda: _jpeg(contents, image_size, drawn),
        lambda: _other_format(contents, image_size, drawn),
    )
    image.set_shape([None, None, 3])
    square = tf.cond(
        (scale >= 0.8) & (scale <= 1.0),
        lambda: _sampled(image, scale, offset, image_size),
        lambda: _averaged(image, scale, offset, image_size),
    )
    # Means of pixels stay within 0 … 255.
    square = tf.cast(square + 0.5, tf.uint8)
    square.set_shape([image_size, image_size, 3])
    return square


def _averaged(image, scale, offset, image_size):
    # Scaling and cropping in one operation, which computes the pixels of the square only. The
    # triangle widens as the image shrinks (as Pillow's BILINEAR does), against aliasing.
    return tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=[image_size, image_size],
        scale=tf.stack([scale, scale]),
        translation=-offset,
        kernel_type="triangle",
        antialias=True,
    )[0]


def _sampled(image, scale, offset, image_size):
    # The same with a triangle that does not widen, at half the cost: for images that shrink by at
    # most a fifth, as most do after they are decoded at a fraction of their size.
    furthest = tf.cast(tf.shape(image)[:2] - 1, tf.float32)
    first = (offset + 0.5) / scale - 0.5
    last = (offset + image_size - 0.5) / scale - 0.5
    # Beyond the last pixel, by rounding, there would be black.
    box = tf.clip_by_value(tf.concat([first / furthest, last / furthest], 0), 0.0, 1.0)
    return tf.image.crop_and_resize(image[None], box[None], [0], [image_size, image_size])[0]


def _place(shape, image_size, drawn):
    """By which factor an image `(height, width)` is scaled, and where the square begins in it."""
    side = scaled_side(image_size)
    shorter = tf.minimum(shape[0], shape[1])
    scaled = tf.cast(tf.cast(shape, tf.int64) * side // tf.cast(shorter, tf.int64), tf.int32)
    room = scaled - image_size
    if drawn is None:
        offset = room // 2
    else:
        # The product can round up to the end of its range.
        offset = tf.minimum(tf.cast(drawn * tf.cast(room + 1, tf.float32), tf.int32), room)
    return tf.cast(side, tf.float32) / tf.cast(shorter, tf.float32), tf.cast(offset, tf.float32)


def _jpeg(contents, image_size, drawn):
    shape = tf.io.extract_jpeg_shape(contents)[:2]
    contents = image_files.limited(contents, tf.cast(shape, tf.int64))
    scale, offset = _place(shape, image_size, drawn)
    # JPEG can be decoded at 1/2, 1/4, 1/8 of its size from fewer frequencies, which costs less
    # and is as good as averaging; never to below the wanted size.
    shorter, side = tf.minimum(shape[0], shape[1]), scaled_side(image_size)
    halvings = sum(tf.cast(shorter >= ratio * side, tf.int32) for ratio in (2, 4, 8))

    def decoder(ratio):
        return lambda: tf.io.decode_jpeg(
            contents, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE"
        )

    image = tf.switch_case(halvings, [decoder(ratio) for ratio in (1, 2, 4, 8)])
    return image, scale * tf.cast(tf.bitwise.left_shift(1, halvings), tf.float32), offset


def _other_format(contents, image_size, drawn):
    image = image_files.decode(contents, 3)
    scale, offset = _place(tf.shape(image)[:2], image_size, drawn)
    return image, scale, offset


@tf.autograph.experimental.do_not_convert
def _decodes(contents):
    """Decodes a whole image, in the cheapest way; an error, or true."""
    contents = image_files.checked(contents)
    image = tf.cond(
        tf.io.is_jpeg(contents),
        lambda: tf.io.decode_jpeg(contents, channels=3, ratio=8),
        lambda: image_files.decode(contents, 3),
    )
    return tf.size(image) > 0


# ----------------------------------------------------------------------------- where images lie


@dataclasses.dataclass(frozen=True)
class Files:
    """Images that are files below a folder; an example is a file name, relative to it.

    Args:
        root: The folder.
    """

    root: Path
    _prefix: bytes = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "_prefix", os.fsencode(self.root) + b"/")

    def read(self, example: tf.Tensor) -> tf.Tensor:
        """The file's contents."""
        return tf.io.read_file(tf.strings.join([self._prefix, example]))

    def describe(self, example: bytes) -> str:
        """The file's path, for messages."""
        return str(self.root / os.fsdecode(example))

    def looks_whole(self, example: bytes) -> bool:
        """Whether the file begins and ends like a whole JPEG or PNG, and the PNG is not too large.

        The size of a JPEG is not among its first bytes; decoding it checks that.
        """
        try:
            with open(self.root / os.fsdecode(example), "rb") as file:
                head = file.read(24)
                file.seek(-min(_TAIL, os.fstat(file.fileno()).st_size), os.SEEK_END)
                tail = file.read(_TAIL)
        except OSError:
            return False
        is_png = head.startswith(_ENDS[1][0])
        pixels = int.from_bytes(head[16:20]) * int.from_bytes(head[20:24]) if is_png else 0
        whole = any(head.startswith(begin) and end in tail for begin, end in _ENDS)
        return whole and pixels <= MAX_IMAGE_PIXELS


@dataclasses.dataclass(frozen=True)
class Records:
    """Images inside TFRecord files; an example is three int64: file, first byte, bytes.

    Args:
        paths: The TFRecord files.
        feature: Which feature of a record holds the encoded image.
    """

    paths: tuple[str, ...]
    feature: str = "image"

    def read(self, example: tf.Tensor) -> tf.Tensor:
        """The encoded image of a record."""
        record = tf.numpy_function(self._record, [example], tf.string, stateful=False)
        record = tf.ensure_shape(record, [])
        wanted = {self.feature: tf.io.FixedLenFeature([], tf.string)}
        return tf.io.parse_single_example(record, wanted)[self.feature]

    def _record(self, example):
        file, start, length = (int(number) for number in example)
        with open(self.paths[file], "rb", buffering=0) as records:
            return os.pread(records.fileno(), length, start)

    def describe(self, example: np.ndarray) -> str:
        """Where the record stands, for messages."""
        return f"{self.paths[int(example[0])]}, record at byte {int(example[1])}"

    def looks_whole(self, example: np.ndarray) -> bool:
        """TFRecord files were checked when they were indexed."""
        return True


@dataclasses.dataclass(frozen=True)
class Loader:
    """Maps an example of a split to its image: what `Split.load` is for images on disk.

    Args:
        source: Where the images lie.
        image_size: Side of the image that the network sees, in pixels.
    """

    source: Files | Records
    image_size: int

    @tf.autograph.experimental.do_not_convert  # Takes a second, and there is nothing to convert.
    def __call__(self, example: tf.Tensor, drawn: tf.Tensor | None = None) -> tf.Tensor:
        """The image, uint8: the crop at the center or, with random numbers, at random."""
        contents = self.source.read(example)
        # Without the check of sizes, which takes time: `check` has done it once.
        if drawn is None:
            return _scaled_square(contents, self.image_size, None)
        return _random_square(contents, self.image_size, drawn)


# ----------------------------------------------------------------------------- streaming


def stream(batches: Batches) -> tf.data.Dataset:
    """Reads the batches of an epoch from disk: uint8 images and int32 labels, or what `Pairs` make.

    Order, re-sampling and random crops depend on the run's seed and the epoch alone.

    Args:
        batches: Batches of a split with a `load`. Each pass over the result is one over the epoch
            that `batches.epoch` names when it begins.

    Returns:
        A dataset with one element for each batch: images `(batch, side, side, 3)` and labels
        `(batch,)`; of `Pairs` as `Batches` gives them.
    """
    split = batches.split
    load = _traced(split.load)
    # The latest requests, for `naming_unreadable`.
    batches.recent = recent = collections.deque(maxlen=_KEPT_BATCHES)

    def generate():
        recent.clear()
        epoch = batches.epoch
        generator = np.random.default_rng([batches.seed, epoch, 2])
        # For the whole epoch, so that an example's numbers do not depend on the shares.
        drawn = generator.random((len(split), each, 3), dtype=np.float32)
        alpha = pairs.alpha(epoch) if isinstance(pairs, Bilateral) else 1.0
        for index, (indices, places) in enumerate(
            zip(batches.plan(epoch), places_of_shares, strict=True)
        ):
            indices = indices.ravel()  # The two images of a pair follow each other.
            recent.append(indices)
            numbers = drawn[places].reshape(-1, 3)
            weights = np.full(len(indices), alpha, dtype=np.float32)
            batch = np.tile(np.int64([epoch, index]), (len(indices), 1))
            yield split.examples[indices], split.labels[indices], numbers, weights, batch

    def mixed(images, labels, alpha, batch):
        def mix(images, labels, batch):
            epoch, index = (int(number) for number in batch)
            return pairs.batch(
                (images[::2], images[1::2]),
                (labels[::2], labels[1::2]),
                epoch=epoch,
                generator=batches.generator(4, epoch, index),
            )

        types = [tf.uint8, tf.float32]
        mixtures, soft = tf.numpy_function(mix, [images, labels, batch[0]], types, stateful=False)
        shape = (None, pairs.num_classes)
        return tf.ensure_shape(mixtures, images.shape), tf.ensure_shape(soft, shape)

    def paired(images, labels, alpha, batch):
        alpha = alpha[::2, None]
        first, second = (tf.one_hot(labels[i::2], pairs.num_classes) for i in (0, 1))
        return (images[::2], images[1::2], alpha), alpha * first + (1.0 - alpha) * second

    pairs = batches.pairs
    each = 1 if pairs is None else 2
    order = np.arange(len(split))
    size = batches.batch_size
    places = [order[i : i + size] for i in range(0, len(order), size)]
    places_of_shares = batches.shares(places[: batches.steps])
    filled = sum(len(places) > 0 for places in places_of_shares)
    names = tf.TensorSpec((None, *split.examples.shape[1:]), _type_of(split.examples))
    signature = (
        names,
        tf.TensorSpec((None,), tf.int32),
        tf.TensorSpec((None, 3), tf.float32),
        tf.TensorSpec((None,), tf.float32),
        tf.TensorSpec((None, 2), tf.int64),
    )
    dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
    dataset = dataset.unbatch().map(
        lambda example, label, drawn, *others: (load(example, drawn), label, *others),
        num_parallel_calls=_in_work(),
        deterministic=True,
    )
    # Only the last batch of an epoch can leave shares empty; these are left out.
    dataset = dataset.batch(batches.share_size * each)
    whole = paired if isinstance(pairs, Bilateral) else mixed
    dataset = dataset.map(whole if pairs else lambda images, labels, *_: (images, labels))
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(filled))
    return _untuned(dataset.prefetch(_PREFETCHED))


def stream_once(split: Split, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields each example once, in order: uint8 images `(batch, side, side, 3)`, and labels.

    Raises:
        ValueError: if an image cannot be read, naming it.
    """
    dataset = tf.data.Dataset.from_tensor_slices(split.examples).map(
        _traced(split.load), num_parallel_calls=_in_work(), deterministic=True
    )
    stream = iter(_untuned(dataset.batch(batch_size).prefetch(_PREFETCHED)))
    for start in range(0, len(split), batch_size):
        indices = np.arange(start, min(start + batch_size, len(split)))
        try:
            images = next(stream).numpy()
        except tf.errors.OpError as error:
            raise unreadable(split, [indices]) or error from None
        yield images, split.labels[indices]


@functools.lru_cache(maxsize=8)
def _traced(load):
    """`load` as a graph that is kept: tracing takes a second, in each evaluation anew."""
    return tf.function(load, autograph=False)


def _in_work():
    """How many images are processed at a time: more than cores, as some wait for the disk."""
    return 4 * cores()


def _untuned(dataset):
    """Turns autotuning off, which is slower here.

    It also ends an epoch only when its own thread next wakes, after 10 ms · 2^k up to a minute.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = _in_work() // 2
    return dataset.with_options(options)


@contextlib.contextmanager
def naming_unreadable(batches: Batches) -> Iterator[None]:
    """Turns TensorFlow's error for an image of `stream(batches)` into one that names the file."""
    try:
        yield
    except tf.errors.OpError as error:
        raise unreadable(batches.split, reversed(batches.recent)) or error from None


def unreadable(split: Split, batches: Iterable[np.ndarray]) -> ValueError | None:
    """Finds the image that made a pipeline fail, which TensorFlow does not name.

    Returns:
        The error for the first unreadable image in batches of indices; None if all are readable.
    """
    for indices in batches:
        for index in indices:
            reason = _fault(split.load, split.examples[index])
            if reason:
                return _error([split.load.source.describe(split.examples[index])], reason)
    return None


# ----------------------------------------------------------------------------- checking


def check(split: Split, *, skip_corrupt: bool, what: str) -> tuple[Split, list[str]]:
    """Looks for unreadable images before training.

    Without `skip_corrupt` this reads the first and last bytes of each file, and decodes it only if
    they are not those of a whole JPEG or PNG: damage in the middle of a file is found when the
    first epoch reads it. With `skip_corrupt` this decodes every image once, since only then can the
    classes be counted.

    Args:
        split: A split with a `Loader`.
        skip_corrupt: Whether to leave out unreadable images.
        what: Name of the split, for messages; may be empty.

    Returns:
        The split without the unreadable images, and descriptions of these.

    Raises:
        ValueError: without `skip_corrupt`, naming the first unreadable image.
    """
    load, examples = split.load, split.examples
    images = f"{what} images" if what else "images"
    if skip_corrupt:
        print(f"decodes all {len(split)} {images} once, to find unreadable ones", flush=True)
        good = _decodable(load, examples)
        if good.all():
            return split, []
        bad = [load.source.describe(examples[i]) for i in np.flatnonzero(~good)]
        print(f"skips {len(bad)} unreadable {images}: {_some(bad)}", flush=True)
        return split.take(np.flatnonzero(good)), bad
    bad, reason = [], ""
    # Threads wait for the disk, not for Python.
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        parts = np.array_split(np.arange(len(examples)), max(1, len(examples) // 1000))
        suspects = pool.map(
            lambda part: [i for i in part if not load.source.looks_whole(examples[i])], parts
        )
        suspects = [i for part in suspects for i in part]
    for i in suspects:
        fault = _fault(load, examples[i])
        if fault:
            reason = reason or fault
            bad.append(load.source.describe(examples[i]))
    if bad:
        raise _error(bad, reason)
    return split, []


def _decodable(load, examples):
    """Which examples can be decoded, bool, shape `(n,)`."""
    good = np.zeros(len(examples), dtype=bool)
    dataset = tf.data.Dataset.from_tensor_slices((np.arange(len(examples)), examples)).map(
        lambda index, example: (index, _decodes(load.source.read(example))),
        num_parallel_calls=_in_work(),
    )
    for indices, _ in _untuned(dataset.ignore_errors().batch(1000)):
        good[indices.numpy()] = True
    return good


def _fault(load, example):
    """Why an example cannot be decoded; empty if it can."""
    try:
        _decodes(load.source.read(tf.constant(example)))
    except tf.errors.NotFoundError:
        return "it does not exist"
    except tf.errors.OpError as error:
        refused = re.search(r"Summarized data: b'(.*)'\n?(.*)", error.message)
        if refused:
            return " ".join(refused.groups()).strip()
        text = error.message.split("}} ")[-1].split(" [Op:")[0]
        return text.splitlines()[0][:200].rstrip(".") if text else "it cannot be decoded"
    return ""


def _error(bad, reason):
    others = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    return ValueError(
        f"{bad[0]}{others} cannot be read: {reason}. Repair or remove it, or leave it out with "
        "--skip_corrupt."
    )


def _some(names, most=5):
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _type_of(examples):
    return tf.string if examples.dtype.kind == "S" else tf.as_dtype(examples.dtype)
