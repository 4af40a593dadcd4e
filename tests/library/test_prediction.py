"""What an exported model answers to lines: each, in order, as it arrives, the bad ones in place."""

import codecs
import io
import itertools
import shutil
import threading
import time

import made_exports
import numpy as np
import pytest
import tensorflow as tf

from keras_ldam.export.limits import MAX_IMAGE_PIXELS
from keras_ldam.serving import exported, predictor

REFUSED = {
    b"": "text is empty",
    b"good \xff\xfe": "text is not valid UTF-8",
    b"x" * 10**6: "text is longer than 100000 bytes",
    b" ... ": "text has no words",
    "good".encode("utf-16-le"): "text holds a NUL byte, as UTF-16 does; encode it in UTF-8",
}


@pytest.fixture(scope="module")
def texts(text_export):
    return predictor.Predictor(text_export.parent)


@pytest.fixture(scope="module")
def image_export(tmp_path_factory):
    return made_exports.of_digits(tmp_path_factory.mktemp("exports"))


@pytest.fixture(scope="module")
def images(image_export):
    return predictor.Predictor(image_export)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Some images as files, and their pixels."""
    pixels = np.random.default_rng(3).integers(0, 256, (6, 8, 8, 1), np.uint8)
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{i}.png" for i in range(len(pixels))]
    for path, image in zip(paths, pixels, strict=True):
        path.write_bytes(tf.io.encode_png(image).numpy())
    return paths, pixels


def asked(predictor, monkeypatch, before=lambda: None):
    """How many inputs each question to the model holds, once some were asked."""
    sizes, function = [], predictor._signature._function

    def count(**inputs):
        before()
        sizes.append(len(next(iter(inputs.values()))))
        return function(**inputs)

    monkeypatch.setattr(predictor._signature, "_function", count)
    return sizes


def test_each_line_is_answered_in_order_as_it_would_be_alone(texts):
    lines = [b" ".join([b"good"] * i + [b"film"]) for i in range(10)]
    answers = list(texts.predict(lines, batch_size=4))
    assert [answer["line"] for answer in answers] == list(range(1, 11))
    for line, answer in zip(lines, answers, strict=True):
        ((alone),) = texts.predict([line])
        assert answer["label"] == alone["label"] == ["negative", "positive"][answer["class_index"]]
        np.testing.assert_allclose(answer["probabilities"], alone["probabilities"], atol=1e-6)
        assert answer["probability"] == max(answer["probabilities"])
    # The lines differ, so an exchange of two would have been seen.
    assert len({answer["probability"] for answer in answers}) == 10


def test_a_line_is_answered_before_the_next_one_comes(texts):
    answered = threading.Event()

    def lines():
        yield b"good"
        # Whoever waits for more lines before it answers, waits in vain.
        assert answered.wait(60)
        yield b"film"

    answers = texts.predict(lines(), batch_size=64)
    assert next(answers)["line"] == 1
    answered.set()
    assert [answer["line"] for answer in answers] == [2]


def test_lines_that_are_there_are_answered_together(texts, monkeypatch):
    read = threading.Event()

    def lines():
        yield from [b"good"] * 10
        read.set()

    sizes = asked(texts, monkeypatch, before=lambda: read.wait(60))
    assert len(list(texts.predict(lines(), batch_size=4))) == 10
    assert sum(sizes) == 10
    assert max(sizes) == 4
    # How many were there at the first question is a race; from then on all of them were.
    assert len(sizes) <= 4


@pytest.mark.parametrize("bad", REFUSED, ids=REFUSED.values())
def test_a_bad_text_is_reported_in_its_place_and_the_others_are_answered(bad, texts):
    lines = [b"good", b"a film", bad, b"film", bad]
    answers = list(texts.predict(lines))
    assert answers[2] == {"line": 3, "error": REFUSED[bad]}
    assert answers[4] == {"line": 5, "error": REFUSED[bad]}
    for i in (0, 1, 3):
        ((alone),) = texts.predict([lines[i]])
        np.testing.assert_allclose(answers[i]["probabilities"], alone["probabilities"], atol=1e-6)


def test_texts_of_like_length_are_answered_together_and_told_in_order(texts, monkeypatch):
    groups, function = [], texts._signature._function

    def keep(text):
        groups.append(text.numpy().tolist())
        return function(text=text)

    monkeypatch.setattr(texts._signature, "_function", keep)
    lines = [b"good", b"good good good film", b"film", b"a good film film"]
    answers = texts._answer_lines(lines, batch_size=2)
    assert groups == [[b"good", b"film"], [b"a good film film", b"good good good film"]]
    for line, answer in zip(lines, answers, strict=True):
        assert answer["probability"] == pytest.approx(next(texts._answer([line]))["probability"])


def test_one_bad_line_of_many_costs_few_questions(texts, monkeypatch):
    sizes = asked(texts, monkeypatch)
    answers = list(texts._answer([b"good"] * 20 + [b""] + [b"good"] * 43))
    assert [i for i, answer in enumerate(answers) if "error" in answer] == [20]
    assert len(sizes) == 1 + 2 * 6  # 64 halved six times.


def test_image_files_are_answered_like_their_pixels(images, files, image_export):
    paths, pixels = files
    loaded = tf.saved_model.load(str(image_export))
    expected = loaded.signatures["serving_default"](image=tf.constant(pixels))
    answers = list(images.predict([str(path).encode() for path in paths]))
    assert [answer["path"] for answer in answers] == [str(path) for path in paths]
    np.testing.assert_allclose(
        [answer["probabilities"] for answer in answers], expected["probabilities"], atol=1e-6
    )


def test_a_bad_file_is_reported_in_its_place_and_the_others_are_answered(images, files, tmp_path):
    paths, pixels = files
    jpeg = tf.io.encode_jpeg(pixels[0]).numpy()
    (tmp_path / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (tmp_path / "large.png").write_bytes(tf.io.encode_png(np.zeros([9, 8, 1], np.uint8)).numpy())
    (tmp_path / "empty.png").write_bytes(b"")
    bad = {
        tmp_path / "cut.jpg": "Invalid JPEG data",
        tmp_path / "large.png": "image must be 8 pixels high and 8 wide; its size is 9 8",
        tmp_path / "empty.png": "Input is empty",
        tmp_path / "none.png": "cannot be read: No such file or directory",
        tmp_path: "cannot be read: Is a directory",
        "nul\0": "cannot be read: embedded null byte",
    }
    lines = [str(path).encode() for path in (paths[0], *bad, paths[1])]
    answers = list(images.predict(lines))
    assert [answer["line"] for answer in answers] == list(range(1, 9))
    for answer, message in zip(answers[1:-1], bad.values(), strict=True):
        assert message in answer["error"]
        assert "label" not in answer
    for answer, path in ((answers[0], paths[0]), (answers[-1], paths[1])):
        ((alone),) = images.predict([str(path).encode()])
        np.testing.assert_allclose(answer["probabilities"], alone["probabilities"], atol=1e-6)


def test_probabilities_of_all_classes_can_be_left_out(texts):
    ((answer),) = texts.predict([b"good"], probabilities=False)
    assert list(answer) == ["line", "label", "class_index", "probability"]


def test_a_reader_ends_with_those_who_ask(texts):
    before = threading.active_count()
    for size in (1, 2, 64):
        answers = texts.predict(itertools.repeat(b"good film"), batch_size=size)
        next(answers)
        answers.close()
    for _ in range(100):
        if threading.active_count() <= before:
            break
        time.sleep(0.05)
    assert threading.active_count() <= before

    def source():
        yield b"good film"
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        list(texts.predict(source()))


def test_no_line_is_no_answer(texts):
    assert list(texts.predict([])) == []


def test_an_error_of_the_source_ends_the_answers_and_is_not_hidden(texts):
    def lines():
        yield b"good"
        raise OSError("the disk is gone")

    answers = texts.predict(lines())
    assert next(answers)["line"] == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(answers)


def test_the_highest_version_answers(text_export, tmp_path):
    for version in ("2", "10", "9"):
        shutil.copytree(text_export, tmp_path / version)
    (tmp_path / "11").mkdir()  # A copy that has only begun.
    assert exported.load(tmp_path).path == tmp_path / "10"
    assert exported.load(tmp_path / "9").path == tmp_path / "9"


def damaged(folder):
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "saved_model.pb").write_bytes(b"no model")


def foreign(folder):
    module = tf.Module()
    module.f = tf.function(lambda x: {"y": x}, input_signature=[tf.TensorSpec([None])])
    tf.saved_model.save(module, str(folder / "1"), signatures=module.f.get_concrete_function())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no such folder"),
        (lambda folder: folder.mkdir(), "neither saved_model.pb nor a numbered version"),
        (damaged, "1 cannot be loaded as a SavedModel: "),
        (foreign, "1 was not written by `export_saved_model`"),
    ],
)
def test_a_folder_without_an_exported_model_is_refused(make, message, tmp_path):
    make(tmp_path / "model")
    with pytest.raises(ValueError, match=message) as told:
        predictor.Predictor(tmp_path / "model")
    assert len(str(told.value).splitlines()) == 1


def test_a_batch_of_no_lines_is_refused(texts):
    with pytest.raises(ValueError, match=r"`batch_size` must be at least 1\. Received: 0"):
        next(texts.predict([b"good"], batch_size=0))


def test_lines_come_without_their_ends_and_the_mark_of_utf_8():
    file = io.BytesIO(codecs.BOM_UTF8 + b"good film\r\n\xff\n\ngood film")
    assert list(predictor.lines_of(file)) == [b"good film", b"\xff", b"", b"good film"]


def test_a_file_in_utf_16_is_refused_as_a_whole(texts):
    lines = predictor.lines_of(io.BytesIO("good\nfilm\n".encode("utf-16")))
    with pytest.raises(ValueError, match="The lines are in UTF-16; convert them to UTF-8"):
        list(texts.predict(lines))


def test_an_image_that_would_fill_the_memory_is_refused_before_it_is_decoded(
    images, files, tmp_path
):
    paths, _ = files
    (tmp_path / "bomb.png").write_bytes(made_exports.claimed_png(20_000))
    lines = [str(path).encode() for path in (paths[0], tmp_path / "bomb.png", paths[1])]
    answers = list(images.predict(lines))
    message = f"image has more than {MAX_IMAGE_PIXELS} pixels"
    assert answers[1]["error"].startswith(message)
    assert "label" in answers[0] and "label" in answers[2]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("Graph execution error:\n\nDetected at node x\nthe axes differ\n\t [[node]]\nmore",
         "the axes differ"),
        ("assertion failed: [a [1, 2]; received] [8 9]\n\t [[x]] [Op:f]", "a [1, 2]; received 8 9"),
        ("assertion failed: [too long: number in the batch, from 0:] [3]\n\t [[x]]", "too long"),
        ("assertion failed: [unknown format]\n\t [[x]] [Op:f]", "unknown format"),
        ("x" * 1000, "x" * 300),
    ],
)  # fmt: skip
def test_of_a_long_message_the_sentence_is_told(message, reason):
    error = tf.errors.InvalidArgumentError(None, None, message)
    assert exported.reason_of(error) == reason


def test_no_more_lines_are_read_ahead_than_can_be_answered_soon(texts):
    taken = []

    def lines():
        for number in range(10_000):
            taken.append(number)
            yield b"good"

    answers = texts.predict(lines(), batch_size=2)
    next(answers)
    time.sleep(0.3)  # Time enough to read them all.
    assert len(taken) < 100
