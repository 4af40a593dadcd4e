"""One image at a time: decoding, scaling and cropping, for training and for evaluation."""

from __future__ import annotations

import io
import struct

import made_images
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_ldam.experiments.datasets import images
from keras_ldam.experiments.datasets.data import Split


def encoded(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_evaluation_scales_the_shorter_side_and_crops_the_center_as_pillow_does():
    smooth = made_images.picture(1, 0, (8, 6)).resize((600, 450), Image.BICUBIC)
    got = images.center_image(encoded(smooth, quality=95), 224).numpy()
    scaled = smooth.resize((341, 256), Image.BILINEAR)
    wanted = np.asarray(scaled.crop((58, 16, 58 + 224, 16 + 224)), dtype=np.float64)
    assert got.dtype == np.uint8
    assert np.abs(got - wanted).mean() < 1.5
    assert np.abs(got - wanted).max() < 12


def test_shrinking_a_little_by_sampling_is_close_to_averaging_and_has_no_dark_border():
    picture = made_images.picture(1, 0, (80, 60)).resize((400, 300), Image.BICUBIC)
    pixels = tf.constant(np.maximum(np.asarray(picture), 60))
    scale = tf.constant(256 / 300)
    for place in ([0.0, 0.0], [32.0, 117.0], [16.0, 58.0]):
        given = (pixels, scale, tf.constant(place), 224)
        sampled, averaged = images._sampled(*given).numpy(), images._averaged(*given).numpy()
        assert np.abs(sampled - averaged).mean() < 1
        assert sampled.min() >= 60 - 1e-3


@pytest.mark.parametrize(
    "size", [(256, 256), (300, 400), (512, 700), (1100, 1024), (3000, 2100), (20, 300)]
)
def test_decoding_at_a_fraction_of_the_size_shows_the_same_part_of_the_image(size):
    # A ramp from left to right and one from top to bottom tell where each pixel comes from.
    width, height = size
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)[None]
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    got = images.center_image(encoded(Image.fromarray(pixels), quality=100), 224).numpy()
    shorter = min(size)
    for axis, side, channel in ((1, width, 0), (0, height, 1)):
        long = side * 256 // shorter
        at = ((long - 224) // 2 + np.arange(224) + 0.5) * shorter / 256 - 0.5
        wanted = (255 * at / (side - 1)).clip(0, 255)
        line = got[..., channel].mean(axis=1 - axis)
        assert np.abs(line - wanted).max() < 3


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *[("L", "JPEG"), ("CMYK", "JPEG")],
        *[("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("1", "PNG"), ("P", "GIF"), ("L", "GIF")],
        *[("RGB", "WEBP"), ("RGBA", "WEBP"), ("L", "WEBP")],
        *[("RGB", "BMP"), ("RGBA", "BMP"), ("L", "BMP"), ("P", "BMP"), ("1", "BMP")],
    ],
)
def test_an_image_of_another_mode_comes_out_as_the_rgb_that_pillow_makes_of_it(mode, kind):
    # Of the size that an image is scaled to for 32, so that pixels can be compared.
    smooth = made_images.picture(1, 0, (8, 8)).resize((37, 37), Image.BICUBIC).convert(mode)
    if mode == "RGBA":
        smooth.putalpha(100)
    options = {"JPEG": {"quality": 98}, "WEBP": {"lossless": True, "exact": True}}
    contents = encoded(smooth, kind, **options.get(kind, {}))
    wanted = np.asarray(Image.open(io.BytesIO(contents)).convert("RGB"), dtype=np.float64)
    got = images.center_image(contents, 32).numpy()
    assert np.abs(got - wanted[2:34, 2:34]).mean() < 2


def test_a_16_bit_image_keeps_its_brightness():
    levels = np.linspace(0, 65535, 37 * 37).reshape(37, 37).astype(np.uint16)
    got = images.center_image(encoded(Image.fromarray(levels), "PNG"), 32).numpy()
    assert np.abs(got[..., 0] - levels[2:34, 2:34] / 257).max() <= 1.01
    assert (got[..., 0] == got[..., 2]).all()


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "BMP"])
def test_a_picture_of_one_color_has_it_in_every_format(kind):
    blue = Image.new("RGB", (40, 40), (0, 0, 255)).convert("P", palette=Image.ADAPTIVE)
    contents = encoded(blue, kind, **({"lossless": True} if kind == "WEBP" else {}))
    pixels = images.center_image(contents, 32).numpy()
    assert np.unique(pixels.reshape(-1, 3), axis=0).tolist() == [[0, 0, 255]]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_read_or_its_format_refused(kind):
    first, second = (Image.new("RGB", (40, 40), color) for color in ((9, 200, 9), (200, 9, 9)))
    contents = encoded(first, kind, save_all=True, append_images=[second])
    if kind == "WEBP":  # TensorFlow's decoder would write beyond its buffer.
        with pytest.raises(tf.errors.InvalidArgumentError, match="WebP must not be animated"):
            images.center_image(contents, 32)
        return
    pixels = images.center_image(contents, 32).numpy()
    assert np.abs(pixels.astype(int) - [9, 200, 9]).max() <= 1


def claiming(side, kind):
    """A small image file whose header claims a height and width of `side`."""
    contents = bytearray(encoded(Image.new("RGB", (40, 40)), kind))
    if kind == "JPEG":
        at = contents.index(b"\xff\xc0") + 5
        contents[at : at + 4] = struct.pack(">HH", side, side)
    elif kind == "PNG":
        contents[16:24] = struct.pack(">II", side, side)
    elif kind == "BMP":
        contents[18:26] = struct.pack("<ii", side, -side)
    elif kind == "WEBP":
        contents[26:30] = struct.pack("<HH", side, side)
    else:
        at = contents.index(b",\0\0\0\0\x28\0\x28\0") + 5
        contents[at : at + 4] = struct.pack("<HH", side, side)
    return bytes(contents)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
def test_an_image_that_claims_a_size_to_fill_the_memory_is_refused_before_it_is_decoded(
    tmp_path, kind
):
    contents = claiming(16000, kind)
    for decode in (
        lambda: images.center_image(contents, 32),
        lambda: images.random_image(contents, 32, np.zeros(3, np.float32)),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match="more than 50000000 pixels"):
            decode()
    (tmp_path / "picture").write_bytes(contents + bytes(100) * (kind == "JPEG"))
    loader = images.Loader(images.Files(tmp_path), 32)
    with pytest.raises(ValueError, match="picture cannot be read: image has more than 50000000 "):
        images.check(Split([b"picture"], [0], loader), skip_corrupt=False, what="")


def test_a_bmp_that_would_be_misread_is_refused_by_its_format():
    contents = bytearray(encoded(Image.new("P", (40, 40)), "BMP"))
    contents[30] = 1  # Compressed.
    with pytest.raises(tf.errors.InvalidArgumentError, match="BMP must be uncompressed"):
        images.center_image(bytes(contents), 32)


def test_random_crops_depend_on_the_numbers_stay_inside_and_reach_every_corner_and_flip():
    # Each pixel tells its column and its row.
    pixels = np.zeros((37, 37, 3), dtype=np.uint8)
    pixels[..., 0] = 5 * np.arange(37)[None]
    pixels[..., 1] = 5 * np.arange(37)[:, None]
    contents = encoded(Image.fromarray(pixels), "PNG")
    crop = tf.function(lambda drawn: images.random_image(contents, 32, drawn))
    drawn = np.random.default_rng(3).random((200, 3), dtype=np.float32)
    drawn[0], drawn[1] = 0, np.nextafter(np.float32(1), np.float32(0))
    crops = [crop(numbers).numpy() for numbers in drawn]
    assert (crops[7] == crop(drawn[7]).numpy()).all()
    seen = set()
    for image in crops:
        flipped = image[0, 0, 0] > image[0, -1, 0]
        left = image[0, -1 if flipped else 0, 0] // 5
        top = image[0, 0, 1] // 5
        window = pixels[top : top + 32, left : left + 32]
        assert (image == (window[:, ::-1] if flipped else window)).all()
        seen.add((int(top), int(left), bool(flipped)))
    # The scaled side is 37 for 32: offsets 0 to 5.
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(6))
    flips = sum(flipped for _, _, flipped in seen) / len(seen)
    assert 0.3 < flips < 0.7
