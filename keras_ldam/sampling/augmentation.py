"""AutoAugment's policy for CIFAR-10, and cutout, on batches of images in NumPy."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_ldam import counts as class_counts
from keras_ldam.sampling.batches import balanced
from keras_ldam.sampling.sources import readers

CIFAR10_POLICY = (
    (("invert", 0.1, 7), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.5, 8), ("equalize", 0.9, 2)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 5), ("equalize", 0.5, 1)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 7), ("auto_contrast", 0.4, 8)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 3)),
    (("equalize", 0.2, 0), ("auto_contrast", 0.6, 0)),
    (("equalize", 0.2, 8), ("equalize", 0.6, 4)),
    (("color", 0.9, 9), ("equalize", 0.6, 6)),
    (("auto_contrast", 0.8, 4), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("auto_contrast", 0.9, 3)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.9, 2), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 8), ("invert", 0.1, 3)),
    (("translate_y", 0.7, 9), ("auto_contrast", 0.9, 1)),
)
"""Cubuk et al. (2019), table 7: pairs of operations, each with its probability and magnitude."""


def augmented(
    data: Any,
    *,
    autoaugment: bool = True,
    cutout: int = 0,
    fill: int | Sequence[int] = 128,
    batch_size: int | None = None,
    seed: int = 0,
) -> AugmentedBatches:
    """Augments each batch of training images by AutoAugment's CIFAR-10 policy, by cutout, or both.

    It wraps what `fit` takes, on any backend; see `keras_ldam.augment` for what is done to an
    image. What is drawn depends on seed, epoch and batch alone. Layers of the model that crop and
    mirror, such as `keras_ldam.RandomCropFlip`, come after it.

    Args:
        data: Arrays `(x, y)` or `(x, y, sample_weight)`, which are shuffled anew in each epoch,
            with labels of any form; or a `keras.utils.PyDataset`, such as `keras_ldam.balanced` and
            `keras_ldam.mixed` return. x are images in uint8, `(n, height, width, channels)`, with
            1 or 3 channels.
        autoaugment: As in `keras_ldam.augment`.
        cutout: As in `keras_ldam.augment`.
        fill: As in `keras_ldam.augment`.
        batch_size: For arrays: examples in a batch. Defaults to 32.
        seed: Seed of the draws, a whole number of at least 0.

    Returns:
        The batches, changed in x alone, as a `keras.utils.PyDataset`. Pass
        `keras_ldam.EpochClock(batches)` to `fit` among its callbacks.

    Raises:
        ValueError: for an argument out of range, or data in another form.

    Example:

    >>> images, labels = np.zeros((100, 32, 32, 3), "uint8"), np.repeat([0, 1], [90, 10])
    >>> batches = augmented((images, labels), cutout=16, batch_size=20)
    >>> x, y = batches[0]
    >>> x.shape, x.dtype
    ((20, 32, 32, 3), dtype('uint8'))

    References:
        Cubuk et al., 2019, "AutoAugment: Learning Augmentation Policies from Data"; DeVries and
        Taylor, 2017, "Improved Regularization of Convolutional Neural Networks with Cutout".
    """
    class_counts.check_whole("seed", seed, 0)
    _check(autoaugment, cutout, fill)
    if isinstance(data, keras.utils.PyDataset):
        if batch_size is not None:
            raise ValueError(
                "`batch_size` must be None for a `keras.utils.PyDataset`, which has batches. "
                f"Received: batch_size={batch_size}"
            )
    elif isinstance(data, (tuple, list)) and data:
        # Each example once, whatever its label: so any two classes will do for the draws.
        classes = np.arange(math.prod(np.shape(data[0])[:1])) % 2
        how: Any = {"power": 0.0, "labels": classes, "verbose": 0}
        data = balanced(data, batch_size=batch_size, seed=seed, **how)
    else:
        raise ValueError(
            "`data` must be arrays `(x, y)` or a `keras.utils.PyDataset`. Received: "
            f"{type(data).__name__}"
        )
    change = functools.partial(augment, autoaugment=autoaugment, cutout=cutout, fill=fill)
    return AugmentedBatches(data, change, seed=int(seed))


class AugmentedBatches(keras.utils.PyDataset):
    """Batches of augmented images, which `augmented` makes."""

    def __init__(self, batches: keras.utils.PyDataset, change: Callable[..., Any], *, seed: int):
        super().__init__(
            **readers(
                workers=batches.workers,
                use_multiprocessing=batches.use_multiprocessing,
                max_queue_size=batches.max_queue_size,
            )
        )
        self.batches, self.change, self.seed = batches, change, seed
        self._epoch = getattr(batches, "epoch", 0)

    @property
    def epoch(self) -> int:
        """Epoch whose batches are given, from zero."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch = epoch
        if hasattr(self.batches, "epoch"):
            self.batches.epoch = epoch

    @property
    def num_batches(self) -> int | None:
        """Batches of an epoch; None for endless ones."""
        return self.batches.num_batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        x, *others = self.batches[index]
        generator = np.random.default_rng([self.seed, self.epoch, 5, index])
        return (self.change(x, generator), *others)

    def on_epoch_begin(self) -> None:
        """Tells the wrapped batches that an epoch begins."""
        self.batches.on_epoch_begin()

    def on_epoch_end(self) -> None:
        """Goes on to the next epoch; an `EpochClock` says which that is."""
        self.batches.on_epoch_end()
        self.epoch += 1


def augment(
    images: Any,
    generator: np.random.Generator,
    *,
    autoaugment: bool = True,
    cutout: int = 0,
    fill: int | Sequence[int] = 128,
) -> np.ndarray:
    """Changes each image of a batch by AutoAugment's CIFAR-10 policy, by cutout, or both in turn.

    - AutoAugment draws one of the 25 sub-policies for each image, and applies its two operations
      in turn, each with its probability. Magnitudes 0 to 9 divide the ranges of the paper evenly:
      shear to 0.3, translation to 150/331 of the side, in whole pixels, rotation to 30°, all
      in a random direction; solarization from 256 to 0; posterization from 8 to 4 bits; color,
      contrast, brightness and sharpness by a factor of 1 ± 0.1 for each step. Pixels are those of
      Pillow's operations, and moved ones those nearest.
    - Cutout fills a square whose center is anywhere in the image; what lies outside is cut off.

    Both are cheaper on whole batches than image by image. For other data than arrays call it where
    batches are made; with `tf.data`, by `tf.numpy_function`.

    Args:
        images: uint8, `(batch, height, width, channels)`, with 1 or 3 channels.
        generator: Gives the random numbers.
        autoaugment: Whether to apply the policy.
        cutout: Side of the square in pixels, 16 for CIFAR-10; 0 for none.
        fill: Value of pixels without a source, from 0 to 255, or one for each channel: the mean of
            the training images, which normalization turns to 0, is usual.

    Returns:
        Images of the same shape and type.

    Raises:
        ValueError: for an argument out of range, or images in another form.

    Example:

    >>> images = np.zeros((2, 32, 32, 3), "uint8")
    >>> int(augment(images, np.random.default_rng(0), autoaugment=False, cutout=8).max())
    128
    """
    _check(autoaugment, cutout, fill)
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(
            "`images` must be uint8 `(batch, height, width, channels)` with 1 or 3 channels. "
            f"Received: {images.dtype}, shape {images.shape}"
        )
    color = np.asarray(fill, np.uint8)
    if color.ndim and len(color) != images.shape[3]:
        raise ValueError(
            f"`fill` must be one number or {images.shape[3]}, one for each channel. Received: "
            f"fill={fill}"
        )
    if autoaugment:
        images = _by_policy(images, generator, color)
    if cutout:
        images = _cut_out(images, generator, cutout, color)
    return images


def _check(autoaugment: Any, cutout: Any, fill: Any) -> None:
    class_counts.check_flag("autoaugment", autoaugment)
    class_counts.check_whole("cutout", cutout, 0)
    if not autoaugment and not cutout:
        raise ValueError("`cutout` must be above 0 without `autoaugment`. Received: cutout=0")
    values = np.asarray(fill)
    if values.dtype.kind not in "iu" or values.ndim > 1 or ((values < 0) | (values > 255)).any():
        raise ValueError(
            "`fill` must be a whole number from 0 to 255, or one for each channel. Received: "
            f"fill={class_counts.shown(fill)}"
        )


def _by_policy(images: np.ndarray, generator: np.random.Generator, fill: np.ndarray) -> np.ndarray:
    size = len(images)
    chosen = generator.integers(len(CIFAR10_POLICY), size=size)
    applied = generator.random((size, 2)) < _PROBABILITIES[chosen]
    strengths = _STRENGTHS[chosen] * generator.choice([-1, 1], (size, 2))
    numbers = np.where(applied, _NUMBERS[chosen], -1)
    images = images.copy()
    for step in range(2):
        # All images of a batch that need an operation at a time.
        for number, operation in enumerate(_OPERATIONS.values()):
            which = np.flatnonzero(numbers[:, step] == number)
            if len(which):
                images[which] = operation(images[which], strengths[which, step], fill)
    return images


def _cut_out(
    images: np.ndarray, generator: np.random.Generator, side: int, fill: np.ndarray
) -> np.ndarray:
    inside = []
    for length in images.shape[1:3]:
        start = generator.integers(length, size=(len(images), 1)) - side // 2
        at = np.arange(length)
        inside.append((at >= start) & (at < start + side))
    rows, columns = inside
    return np.where(rows[:, :, None, None] & columns[:, None, :, None], fill, images)


# ------------------------------------------------------------------- operations, as Pillow's


def _each(values: np.ndarray) -> np.ndarray:
    """One number for each image, against their pixels."""
    return values.reshape(-1, 1, 1, 1)


def _invert(images: np.ndarray, strengths: np.ndarray, fill: np.ndarray) -> np.ndarray:
    return 255 - images


def _solarize(images: np.ndarray, strengths: np.ndarray, fill: np.ndarray) -> np.ndarray:
    thresholds = np.ceil(256 * (1 - np.abs(strengths))).astype(np.int16)
    return np.where(images < _each(thresholds), images, 255 - images)


def _posterize(images: np.ndarray, strengths: np.ndarray, fill: np.ndarray) -> np.ndarray:
    lost = np.rint(4 * np.abs(strengths)).astype(np.int64)
    return images & _each((256 - 2**lost).astype(np.uint8))


def _auto_contrast(images: np.ndarray, strengths: np.ndarray, fill: np.ndarray) -> np.ndarray:
    low, high = images.min((1, 2)).astype(np.int64), images.max((1, 2)).astype(np.int64)
    scales = 255.0 / np.maximum(high - low, 1)
    tables = np.arange(256) * scales[..., None] + (-low * scales)[..., None]
    tables = np.where((high > low)[..., None], np.clip(tables, 0, 255), np.arange(256))
    return _looked_up(tables, images)


def _equalize(images: np.ndarray, strengths: np.ndarray, fill: np.ndarray) -> np.ndarray:
    channels = _numbered(images) + images
    number = images.shape[0] * images.shape[3]
    histograms = np.bincount(channels.ravel(), minlength=256 * number).reshape(number, 256)
    last = 255 - (histograms[:, ::-1] > 0).argmax(1)
    rest = histograms.sum(1) - histograms[np.arange(number), last]
    steps = rest[:, None] // 255  # Zero with a single value, too.
    before = np.cumsum(histograms, 1) - histograms
    tables = np.minimum((before + steps // 2) // np.maximum(steps, 1), 255)
    return _looked_up(np.where(steps > 0, tables, np.arange(256)), images)


def _numbered(images: np.ndarray) -> np.ndarray:
    """256 times the number of each image's channel."""
    size, _, _, channels = images.shape
    return 256 * np.arange(size * channels).reshape(size, 1, 1, channels)


def _looked_up(tables: np.ndarray, images: np.ndarray) -> np.ndarray:
    return tables.astype(np.uint8).ravel()[_numbered(images) + images]


def _gray(images: np.ndarray) -> np.ndarray:
    if images.shape[3] == 1:
        return images
    weighted = images.astype(np.int32) @ np.array([19595, 38470, 7471], np.int32)
    return ((weighted + 2**15) >> 16)[..., None]


def _blended(other: Any, images: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    factors = _each((1 + 0.9 * strengths).astype(np.float32))
    other = np.asarray(other, np.float32)
    return np.clip(other + factors * (images - other), 0, 255).astype(np.uint8)


def _color(images: np.ndarray, strengths: np.ndarray, fill: np.ndarray) -> np.ndarray:
    return _blended(_gray(images), images, strengths)


def _contrast(images: np.ndarray, strengths: np.ndarray, fill: np.ndarray) -> np.ndarray:
    means = np.floor(_gray(images).mean((1, 2, 3), dtype=np.float64) + 0.5)
    return _blended(_each(means), images, strengths)


def _brightness(images: np.ndarray, strengths: np.ndarray, fill: np.ndarray) -> np.ndarray:
    return _blended(0, images, strengths)


def _sharpness(images: np.ndarray, strengths: np.ndarray, fill: np.ndarray) -> np.ndarray:
    # Neighbors count 1 and the pixel 5 of 13; pixels at the edges stay.
    wide = images.astype(np.int16)
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    sums = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * wide[:, 1:-1, 1:-1]
    smooth = images.copy()
    smooth[:, 1:-1, 1:-1] = (sums + 6) // 13
    return _blended(smooth, images, strengths)


def _moved(images: np.ndarray, places: list[np.ndarray], fill: np.ndarray) -> np.ndarray:
    """Takes each pixel of an image from the place in the flat image; -1 is outside."""
    sources = np.stack(places)[..., None]
    flat = images.reshape(len(images), -1, images.shape[3])
    taken = np.take_along_axis(flat, np.maximum(sources, 0), axis=1)
    return np.where(sources < 0, fill, taken).reshape(images.shape)


@functools.lru_cache(maxsize=256)
def _places(matrix: tuple[float, ...], height: int, width: int) -> np.ndarray:
    """The places that an affine map of pixel centers points to, in numbers of 16.16 bits."""
    a, b, c, d, e, f = matrix
    y, x = np.divmod(np.arange(height * width), width)

    def fixed(value: float) -> int:
        return math.floor(value * 65536 + 0.5)

    column = (fixed(c + 0.5 * (a + b)) + x * fixed(a) + y * fixed(b)) >> 16
    row = (fixed(f + 0.5 * (d + e)) + x * fixed(d) + y * fixed(e)) >> 16
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return np.where(inside, row * width + column, -1)


def _shear_y(images: np.ndarray, strengths: np.ndarray, fill: np.ndarray) -> np.ndarray:
    size = images.shape[1:3]
    places = [_places((1.0, 0.0, 0.0, 0.3 * float(s), 1.0, 0.0), *size) for s in strengths]
    return _moved(images, places, fill)


def _translate_x(images: np.ndarray, strengths: np.ndarray, fill: np.ndarray) -> np.ndarray:
    size = images.shape[1:3]
    shifts = np.trunc(strengths * (150 / 331 * size[1]))
    places = [_places((1.0, 0.0, float(s), 0.0, 1.0, 0.0), *size) for s in shifts]
    return _moved(images, places, fill)


def _translate_y(images: np.ndarray, strengths: np.ndarray, fill: np.ndarray) -> np.ndarray:
    size = images.shape[1:3]
    shifts = np.trunc(strengths * (150 / 331 * size[0]))
    places = [_places((1.0, 0.0, 0.0, 0.0, 1.0, float(s)), *size) for s in shifts]
    return _moved(images, places, fill)


def _rotate(images: np.ndarray, strengths: np.ndarray, fill: np.ndarray) -> np.ndarray:
    size = images.shape[1:3]
    x, y = size[1] / 2, size[0] / 2
    places = []
    for strength in strengths:
        angle = math.radians(30 * float(strength))
        cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
        matrix = (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)
        places.append(_places(matrix, *size))
    return _moved(images, places, fill)


_OPERATIONS = {
    "invert": _invert,
    "solarize": _solarize,
    "posterize": _posterize,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "color": _color,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
}
_NUMBERS = np.array(
    [[list(_OPERATIONS).index(name) for name, _, _ in sub] for sub in CIFAR10_POLICY]
)
_PROBABILITIES = np.array([[probability for _, probability, _ in sub] for sub in CIFAR10_POLICY])
_STRENGTHS = np.array([[magnitude / 9 for _, _, magnitude in sub] for sub in CIFAR10_POLICY])
