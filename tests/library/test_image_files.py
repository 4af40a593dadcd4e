"""Image files as an export decodes them, and those that it refuses."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from made_exports import png, small_model
from PIL import Image

import keras_ldam
from keras_ldam.export import graphs, image_files, limits

EXIF = b"Exif\0\0II*\0\x08" + bytes(9)


def encoded(image_format, mode="RGB", size=(12, 10), **options):
    file = io.BytesIO()
    Image.new("RGB", size, "gray").convert(mode).save(file, image_format, **options)
    return file.getvalue()


def claiming(contents, at, form, *sides):
    """The file, with other sides in its header."""
    contents = bytearray(contents)
    contents[at : at + struct.calcsize(form)] = struct.pack(form, *sides)
    if contents.startswith(b"\x89PNG"):
        contents[29:33] = struct.pack(">I", zlib.crc32(bytes(contents[12:29])))
    return bytes(contents)


def jpeg_claiming(height, width):
    contents = encoded("JPEG")
    return claiming(contents, contents.index(b"\xff\xc0") + 5, ">HH", height, width)


def animation(*sizes):
    """A GIF of a header that names a screen of 1 × 1, and of frames of the given sizes."""
    file = io.BytesIO()
    frames = [Image.effect_noise(size, 99).convert("P") for size in sizes]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], optimize=False)
    return claiming(file.getvalue(), 6, "<HH", 1, 1)


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def checked_in_a_graph(contents):
    return image_files.checked(contents)


def large_frame():
    contents = animation((12, 10), (12, 10))
    second = contents.rindex(b"\x2c\0\0\0\0\x0c\0\x0a\0")
    return claiming(contents, second + 5, "<HH", 60_000, 60_000)


@pytest.mark.parametrize(
    ("contents", "sides"),
    [
        (jpeg_claiming(60_000, 50_000), "[60000 50000]"),
        (claiming(encoded("PNG"), 16, ">II", 12_000, 5_000), "[5000 12000]"),
        (claiming(encoded("BMP"), 18, "<ii", 30_000, -30_000), "[30000 30000]"),
        (claiming(encoded("WEBP"), 26, "<HH", 8_000, 8_001), "[8001 8000]"),
        (claiming(encoded("WEBP", lossless=True), 21, "<I", 0x0FFFFFFF), "[16384 16384]"),
        (claiming(encoded("WEBP", exif=EXIF), 24, "<HBHB", 0, 1, 0, 1), "[65537 65537]"),
        (claiming(encoded("GIF"), encoded("GIF").index(b",") + 5, "<HH", 9_000, 9_000), "[9000 "),
        (large_frame(), "[60000 60000]"),
    ],
    ids=["JPEG", "PNG", "BMP", "WebP", "lossless", "extended", "GIF", "second frame of a GIF"],
)  # fmt: skip
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(contents, sides):
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        checked_in_a_graph(tf.constant(contents))
    message = f"image has more than {limits.MAX_IMAGE_PIXELS} pixels; its height and width are"
    assert message in caught.value.message
    assert sides in caught.value.message


def test_scans_and_compressed_texts_that_take_hours_or_gigabytes_are_refused(monkeypatch):
    jpeg = encoded("JPEG", progressive=True)
    image_files.checked(tf.constant(jpeg))
    scan = jpeg.index(b"\xff\xda")
    many = jpeg[:scan] + b"\xff\xda\0\x08\1\1\0\0\0\0" * 100 + jpeg[scan:]
    monkeypatch.setattr(image_files, "MAX_IMAGE_PIXELS", 120)
    with pytest.raises(tf.errors.InvalidArgumentError, match="too many scans for its size"):
        image_files.checked(tf.constant(many))
    # A video behind the image, in which two bytes of a scan's header come by chance.
    image_files.checked(tf.constant(jpeg + np.random.default_rng(0).bytes(2**21)))
    png = encoded("PNG")
    texts = png[:33] + (b"\0\0\0\x05zTXtk\0\0xx" + bytes(4)) * 17 + png[33:]
    with pytest.raises(tf.errors.InvalidArgumentError, match="more than 16 compressed texts"):
        image_files.checked(tf.constant(texts))


def test_a_bmp_that_is_cut_off_does_not_quote_itself():
    contents = bytearray(encoded("BMP", "P")[:600])
    contents[2] = 0xFF
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        image_files.decode(tf.constant(bytes(contents)), 3)
    assert "out of range for string" not in caught.value.message


def test_all_frames_of_an_animation_count(monkeypatch):
    monkeypatch.setattr(image_files, "MAX_IMAGE_PIXELS", 599)
    image_files.checked(tf.constant(animation(*[(10, 10)] * 5)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="more than 599 pixels"):
        image_files.checked(tf.constant(animation(*[(10, 10)] * 6)))


def test_a_file_whose_size_takes_too_long_to_find_is_refused():
    blocks = b"\1a" * limits.MAX_GIF_BLOCKS
    contents = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + b"!\xfe" + blocks
    with pytest.raises(tf.errors.InvalidArgumentError, match="GIF has more than"):
        image_files.checked(tf.constant(contents))


def test_a_format_whose_size_is_unknown_is_refused():
    with pytest.raises(tf.errors.InvalidArgumentError, match="Unknown image file format"):
        image_files.checked(tf.constant(b"\xff\x0a of JPEG XL"))


@pytest.mark.parametrize(
    "contents",
    [
        encoded("JPEG"), encoded("JPEG", "CMYK"), encoded("JPEG", "L"), encoded("PNG"),
        encoded("GIF", "L"), encoded("BMP"), encoded("BMP", "P"), encoded("WEBP"),
        encoded("WEBP", "RGBA"), animation((12, 10), (12, 10)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 3])
def test_a_file_is_decoded_to_the_colors_of_the_model(contents, channels):
    image = image_files.decode(image_files.checked(tf.constant(contents)), channels)
    assert image.shape == (10, 12, channels)


def test_a_cmyk_jpeg_is_gray_for_a_model_of_gray_images(tmp_path):
    folder = keras_ldam.export_saved_model(
        small_model(), tmp_path / "name", class_names=["a", "b"], scale=1.0
    )
    file = io.BytesIO()
    Image.new("CMYK", (4, 4), (0, 0, 0, 55)).save(file, "JPEG")
    serve = tf.saved_model.load(str(folder)).signatures["serving_bytes"]
    found, gray = serve(
        image_bytes=tf.constant([file.getvalue(), png(np.full([4, 4, 1], 200, np.uint8))])
    )["logits"].numpy()
    np.testing.assert_allclose(found, gray, atol=0.02)


def test_files_of_any_size_are_resized_where_that_is_asked_for(tmp_path):
    folder = keras_ldam.export_saved_model(
        small_model(), tmp_path / "name", class_names=["a", "b"], scale=1.0, resize=True
    )
    loaded = tf.saved_model.load(str(folder))
    files = [png(np.full([size, 5, 1], 200, np.uint8)) for size in (4, 9)]
    answers = loaded.signatures["serving_bytes"](image_bytes=tf.constant(files))
    # Grey stays grey, whatever the size.
    np.testing.assert_allclose(answers["logits"][0], answers["logits"][1], atol=1e-6)


def test_resized_pixels_are_those_of_pillow(rng):
    image = rng.integers(0, 256, (12, 16, 1), dtype=np.uint8)
    served = graphs.ServedImages(lambda images: images, (4, 4, 1), resize=True)
    ours = served._serve_bytes(tf.constant([png(image)])).numpy()[0, ..., 0].astype(int)
    theirs = np.asarray(Image.fromarray(image[..., 0]).resize((4, 4), Image.BILINEAR), int)
    assert np.abs(ours - theirs).max() <= 1  # Pillow rounds in between.
    assert np.abs(ours - theirs).mean() < 0.2
