"""KServe's server with an exported model, in a process of its own and asked over HTTP."""

import base64
import contextlib
import json
import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import keras
import made_exports
import numpy as np
import pytest
import requests
import tensorflow as tf
from forks import Forks
from made_exports import png

import keras_ldam
from keras_ldam.extras import MissingExtraError

ROOT = Path(__file__).parent.parent.parent
# TensorFlow, tensorflow_text and KServe, which wants older packages than requirements.txt names.
OWN = Path(os.environ.get("SERVING_PYTHON", ROOT / ".venv-serving" / "bin" / "python"))
PYTHON = OWN if OWN.exists() else Path(sys.executable) if find_spec("kserve") else None
needs_kserve = pytest.mark.skipif(
    PYTHON is None, reason="KServe is not installed; `make serving` installs it in .venv-serving"
)
SERVE = """
import contextlib, json, sys, time
from keras_ldam.serving import server

path, arguments, settings = json.loads(sys.argv[1])
for name, value in settings.items():
    setattr(server, name, value)
output = sys.stdout
with contextlib.redirect_stdout(sys.stderr):
    for started in server.serve(path, port=0, **arguments):
        print(json.dumps(started), file=output, flush=True)
"""


# KServe would take an argument of the program for its own, and refuse it.
IMPORTS = """
import sys
sys.argv.append("--http_port=none")
import tensorflow_text
from keras_ldam.serving import server
"""


@pytest.fixture(scope="module")
def forks():
    forks = Forks(IMPORTS, PYTHON)
    yield forks
    forks.end()


@pytest.fixture(scope="module")
def start(forks):
    """Starts a server with these arguments of `serve`, and settings of its module."""

    def start(model, log, *, program=SERVE, settings=None, **arguments):
        given = json.dumps([str(model), arguments, settings or {}])
        with open(log, "wb") as file:
            return forks.start(program, given, stderr=file)

    return start


@pytest.fixture(scope="module")
def image_export(tmp_path_factory):
    return made_exports.of_digits(tmp_path_factory.mktemp("exports"))


@pytest.fixture(scope="module")
def urls(image_export, text_export, start, tmp_path_factory):
    """Where five exports are served; each by a process of its own, on loopback."""
    any_size_export = made_exports.of_any_size(tmp_path_factory.mktemp("exports"))
    row_export = made_exports.of_rows(tmp_path_factory.mktemp("exports"))
    pixel_export = made_exports.of_pixels(tmp_path_factory.mktemp("exports"))
    logs = [tmp_path_factory.mktemp("logs") / "log" for _ in range(5)]
    programs = [
        start(image_export.parent, logs[0]),
        start(text_export, logs[1], name="reviews"),
        start(any_size_export, logs[2]),
        start(row_export, logs[3]),
        start(pixel_export, logs[4]),
    ]
    try:
        lines = [program.stdout.readline() for program in programs]
        assert all(lines), "".join(log.read_text() for log in logs)
        yield [json.loads(line)["url"] for line in lines]
    finally:
        for program in programs:
            program.terminate()
            program.wait(30)
            program.stdout.close()


@pytest.fixture(scope="module")
def images(urls):
    return urls[0]


@pytest.fixture(scope="module")
def texts(urls):
    return urls[1]


@pytest.fixture(scope="module")
def any_size(urls):
    return urls[2]


@pytest.fixture(scope="module")
def rows(urls):
    return urls[3]


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(3).integers(0, 256, (16, 8, 8, 1), np.uint8)


def ask(url, request):
    contents = request if isinstance(request, bytes) else json.dumps(request)
    return requests.post(url, data=contents, timeout=60)


def b64(contents):
    return {"b64": base64.b64encode(contents).decode()}


def expected(folder, **inputs):
    loaded = tf.saved_model.load(str(folder))
    outputs = loaded.signatures["serving_default"](**{k: tf.constant(v) for k, v in inputs.items()})
    return {name: value.numpy() for name, value in outputs.items()}


def assert_same(response, outputs):
    assert response.status_code == 200, response.text
    rows = response.json()["predictions"]
    assert [row["label"].encode() for row in rows] == outputs["label"].tolist()
    assert [row["class_index"] for row in rows] == outputs["class_index"].tolist()
    for name in ("probabilities", "logits"):
        np.testing.assert_allclose([row[name] for row in rows], outputs[name], rtol=0, atol=1e-5)


@needs_kserve
def test_a_port_that_is_taken_ends_the_program_with_one_sentence_and_code_2(forks, text_export):
    program = """
import sys
from keras_ldam.experiments import cli
sys.exit(cli.main("serve", sys.argv[1:]))
"""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = forks.run(program, f"--model={text_export}", f"--port={port}")
    assert done.returncode == 2, done.stderr[-2000:]
    assert f"port {port}: Address already in use" in done.stderr
    assert done.stdout == ""


@needs_kserve
def test_pixels_and_files_are_answered_in_tensorflow_servings_form(images, image_export, pixels):
    outputs = expected(image_export, image=pixels)
    files = [b64(png(image)) for image in pixels]
    assert images.endswith("/v1/models/digits:predict")
    for request in (
        {"instances": pixels.tolist()},
        {"instances": [{"image": image.tolist()} for image in pixels]},
        {"signature_name": "serving_bytes", "instances": files},
        {"signature_name": "serving_bytes", "instances": [{"image_bytes": x} for x in files]},
    ):
        assert_same(ask(images, request), outputs)


@needs_kserve
def test_texts_are_answered_as_strings_or_bytes(texts, text_export):
    lines = ["A good film", "film film", "gut, «bon», 良い"]
    outputs = expected(text_export, text=lines)
    assert texts.endswith("/v1/models/reviews:predict")
    assert_same(ask(texts, {"instances": lines}), outputs)
    assert_same(ask(texts, {"instances": [b64(line.encode()) for line in lines]}), outputs)


@needs_kserve
def test_rows_of_a_table_are_answered_as_objects(rows):
    good = [{"size (cm)": 3.5, "class": "ab"}, {"class": "abcd"}, {"size (cm)": 1, "class": None}]
    response = ask(rows, {"instances": good})
    assert response.status_code == 200, response.text
    predictions = response.json()["predictions"]
    assert [row["logits"] for row in predictions] == [[3.5, 2.0], [0.0, 4.0], [1.0, 0.0]]
    assert [row["label"] for row in predictions] == ["large", "long", "large"]
    assert ask(rows, {"instances": []}).json() == {"predictions": []}
    for bad, sentence in (
        ({"size": 1}, "instance 1, from 0: unknown column 'size'; known: 'size (cm)', 'class'"),
        (
            {"size (cm)": "big"},
            "instance 1, from 0: column 'size (cm)' must be a number, not 'big'",
        ),
        ("text", "instance 1, from 0: a row must be a JSON object of columns and values"),
    ):
        refused = ask(rows, {"instances": [good[0], bad]})
        assert refused.status_code == 400 and sentence in refused.json()["error"]


@needs_kserve
def test_foreign_models_adjusted_in_three_lines_are_answered(pixels, start, tmp_path):
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    binary = keras.Model(inputs, keras.layers.Dense(1, "sigmoid")(x))
    kinds = {"kind": keras.layers.Dense(3, "softmax")(x), "features": x}
    adjusted = {
        "binary": keras_ldam.adjust(binary, (pixels, np.arange(16) % 2)),
        "kinds": keras_ldam.adjust(
            keras.Model(inputs, kinds), (pixels, np.arange(16) % 3), output="kind"
        ),
    }
    names = {"binary": ["no", "yes"], "kinds": ["cat", "dog", "owl"]}
    with contextlib.ExitStack() as servers:
        for name, found in adjusted.items():
            keras_ldam.export_saved_model(found.model, tmp_path / name, class_names=names[name])
        programs = {name: start(tmp_path / name, tmp_path / f"{name}.log") for name in adjusted}
        for program in programs.values():
            servers.callback(program.stdout.close)
            servers.callback(program.wait, 30)
            servers.callback(program.terminate)
        for name, program in programs.items():
            url = json.loads(program.stdout.readline())["url"]
            rows = ask(url, {"instances": pixels.tolist()}).json()["predictions"]
            probabilities = np.array([row["probabilities"] for row in rows])
            own = probabilities[:, 1:] if name == "binary" else probabilities
            expected = adjusted[name].model.predict(pixels, verbose=0)
            np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-6)
            assert [row["label"] for row in rows] == [
                names[name][j] for j in probabilities.argmax(axis=1)
            ]


@needs_kserve
@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "application/x-www-form-urlencoded", None]
)
def test_json_is_read_whatever_the_header_calls_it(kind, texts, text_export):
    headers = {"Content-Type": kind}
    outputs = expected(text_export, text=["good"])
    asked = requests.post(texts, data=b'{"instances": ["good"]}', headers=headers, timeout=60)
    assert_same(asked, outputs)
    refused = requests.post(texts, data=b"[" * 10**5, headers=headers, timeout=60)
    assert refused.status_code == 400, refused.text


@needs_kserve
def test_no_instance_is_no_prediction(images, texts):
    for url, request in (
        (texts, {"instances": []}),
        (images, {"instances": []}),
        (images, {"instances": [], "signature_name": "serving_bytes"}),
    ):
        response = ask(url, request)
        assert (response.status_code, response.json()) == (200, {"predictions": []})


@needs_kserve
def test_a_request_with_more_than_is_computed_together_is_answered_in_order(
    images, texts, image_export, text_export, pixels
):
    lines = [f"good {'film ' * (i % 7)}" for i in range(150)]
    assert_same(ask(texts, {"instances": lines}), expected(text_export, text=lines))
    many = np.concatenate([pixels] * 10)
    outputs = expected(image_export, image=many)
    assert_same(ask(images, {"instances": many.tolist()}), outputs)
    files = [b64(png(image)) for image in many]
    request = {"signature_name": "serving_bytes", "instances": files}
    assert_same(ask(images, request), outputs)
    refused = ask(texts, {"instances": [*lines, ""]})
    assert refused.json()["error"] == "instance 150, from 0: text is empty"


def image(height, width, value=0):
    return [[[value]] * width] * height


@needs_kserve
@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"instances": [""]}, "text is empty"),
        ({"instances": ["good", "x" * 10**6]}, "instance 1, from 0: text is longer than 100000"),
        ({"instances": [b64(b"good \xff\xfe")]}, "text is not valid UTF-8"),
        ({"instances": [b64("good".encode("utf-16"))]}, "text is not valid UTF-8"),
        ({"instances": [b64("good".encode("utf-16-le"))]}, "text holds a NUL byte, as UTF-16"),
        ({"instances": ["good", "go\0od"]}, "instance 1, from 0: text holds a NUL byte"),
        ({"instances": ["good", "a", " .. ", ""]}, "instance 2, from 0: text has no words"),
        ({"instances": [1]}, 'an instance must be a string or {"b64"'),
        ({"instances": [["good"]]}, 'an instance must be a string or {"b64"'),
        ({"instances": [{"b64": "?"}]}, "b64 does not hold base64"),
        ({"instances": "good"}, 'the request must be {"instances"'),
        ({"inputs": ["good"]}, 'the request must be {"instances"'),
        (["good"], 'the request must be {"instances"'),
        ({"instances": ["good"], "signature_name": "x"}, "'x'; known: serving_default"),
        ({"instances": ["good"], "signature_name": []}, "[]; known: serving_default"),
        (b'{"instances": ["go', "Unrecognized request format"),
        (b'{"instances": ["\xff"]}', "not valid UTF-8"),
        (b'{"instances": ["\xed\xa0\x80"]}', "not valid UTF-8"),  # Half a pair of surrogates.
    ],
)
def test_a_bad_text_gets_a_sentence_and_code_400(texts, request_, message):
    response = ask(texts, request_)
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]


@needs_kserve
@pytest.mark.parametrize(
    ("instances", "message"),
    [
        ([image(8, 9)], "must be of height, width and channels [8, 8, 1]; received 8 9 1"),
        (image(8, 8), "must be a tensor of 4 axes"),
        ([image(8, 8, 0.5)], "must be whole numbers from 0 to 255"),
        ([image(8, 8, 256)], "must be whole numbers from 0 to 255"),
        ([image(8, 8, 2**80)], "must be whole numbers from 0 to 255"),
        ([image(8, 8, "0")], "must be whole numbers from 0 to 255"),
        ([image(8, 8), image(8, 9)], "in lists of one length for each axis"),
    ],
)
def test_an_image_of_a_wrong_shape_or_type_gets_a_sentence_and_code_400(images, instances, message):
    response = ask(images, {"instances": instances})
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]


@needs_kserve
def test_a_file_that_is_cut_off_is_named(images, pixels):
    whole, jpeg = png(pixels[0]), tf.io.encode_jpeg(pixels[1]).numpy()
    for bad, message in (
        (jpeg[: len(jpeg) // 2], "Invalid JPEG data"),
        (whole[:-20], "Invalid PNG data"),
        (b"no image", "Unknown image file format"),
        (png(np.zeros([9, 8, 1], np.uint8)), "image must be 8 pixels high and 8 wide"),
    ):
        files = [b64(whole)] * 5
        files[3] = b64(bad)
        response = ask(images, {"signature_name": "serving_bytes", "instances": files})
        assert response.status_code == 400, response.text
        assert response.json()["error"].startswith("instance 3, from 0: ")
        assert message in response.json()["error"]


@needs_kserve
@pytest.mark.parametrize("place", [2, 4], ids=["any_size", "pixels"])
def test_files_of_several_sizes_are_answered_together_as_each_by_itself(place, urls, rng):
    sizes = [(8, 8), (9, 9), (8, 8), (5, 7)]
    files = [b64(png(rng.integers(0, 256, (*size, 3), np.uint8))) for size in sizes]

    def answers(files):
        response = ask(urls[place], {"signature_name": "serving_bytes", "instances": files})
        assert response.status_code == 200, response.text
        return response.json()["predictions"]

    alone = [answer for file in files for answer in answers([file])]
    for together, each in zip(answers(files), alone, strict=True):
        assert together["class_index"] == each["class_index"]
        np.testing.assert_allclose(together["logits"], each["logits"], rtol=0, atol=1e-3)


@needs_kserve
def test_among_files_of_several_sizes_the_bad_one_is_named(any_size):
    files = [b64(png(np.zeros([size, 9, 3], np.uint8))) for size in (8, 9, 8)]
    files.insert(2, b64(b"no image"))
    response = ask(any_size, {"signature_name": "serving_bytes", "instances": files})
    assert response.status_code == 400, response.text
    assert response.json()["error"].startswith("instance 2, from 0: Unknown image file format")


@needs_kserve
def test_many_clients_at_once_each_get_their_own_answer_and_bad_ones_harm_nobody(
    images, image_export, pixels
):
    outputs = expected(image_export, image=pixels)

    def client(number):
        first = number % 8
        if number % 5 == 4:
            return ask(images, {"instances": [image(8, 9)]})
        return ask(images, {"instances": pixels[first : first + 1 + number % 3].tolist()})

    with ThreadPoolExecutor(8) as clients:
        responses = list(clients.map(client, range(60)))
    for number, response in enumerate(responses):
        if number % 5 == 4:
            assert response.status_code == 400
            continue
        part = slice(number % 8, number % 8 + 1 + number % 3)
        assert_same(response, {name: value[part] for name, value in outputs.items()})


@needs_kserve
def test_the_server_says_whether_it_is_ready_and_does_not_know_other_models(texts):
    root = texts.removesuffix("/reviews:predict")
    ready = requests.get(f"{root}/reviews", timeout=60)
    assert (ready.status_code, ready.json()) == (200, {"name": "reviews", "ready": True})
    unknown = ask(f"{root}/others:predict", {"instances": ["good"]})
    assert unknown.status_code == 404
    assert "others does not exist" in unknown.json()["error"]


@needs_kserve
@pytest.mark.parametrize("verb", ["load", "unload"])
def test_no_client_can_take_the_model_out_or_bring_another(verb, texts):
    root = texts.removesuffix("/v1/models/reviews:predict")
    for name in ("reviews", "others"):
        url = f"{root}/v2/repository/models/{name}/{verb}"
        refused = requests.post(url, timeout=60)
        assert refused.status_code == 400, refused.text
        assert "keeps the model that it was started with" in refused.json()["error"]
    assert ask(texts, {"instances": ["good"]}).status_code == 200


# ----------------------------------------------------------------------------- limits


def connected(url):
    _, _, address, path = url.split("/", 3)
    host, port = address.split(":")
    return socket.create_connection((host, int(port)), timeout=20), f"/{path}".encode()


@pytest.fixture(scope="module")
def strict(text_export, start, tmp_path_factory):
    """The URL of a server with narrow limits, and its log."""
    log = tmp_path_factory.mktemp("logs") / "log"
    settings = {"REQUEST_SECONDS": 2, "MAX_REQUEST_BYTES": 200_000, "LOG_LINES_A_MINUTE": 400}
    program = start(text_export, log, name="reviews", settings=settings)
    try:
        line = program.stdout.readline()
        assert line, log.read_text()[-2000:]
        yield json.loads(line)["url"], log
    finally:
        program.terminate()
        program.wait(30)
        program.stdout.close()


HALVES = (
    b"",
    b"\r\n",
    b"PO",
    b"POST %b HTTP/1.1\r\nContent-Length: 9\r\nX: ",
    b"POST %b HTTP/1.1\r\nContent-Length: 100\r\n\r\n{",
    b"POST %b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{",
    b"GET / HTTP/1.1\r\n\r\nGET / HT",
)


@needs_kserve
def test_connections_with_half_a_request_are_closed(strict):
    begun, clients = time.monotonic(), {}
    with contextlib.ExitStack() as opened:
        for half in HALVES:  # All at once: each is closed after a while only.
            clients[half], path = connected(strict[0])
            opened.enter_context(clients[half]).sendall(half.replace(b"%b", path))
        for half, client in clients.items():
            received = b""
            while part := client.recv(10_000):
                received += part
            # A request that was complete is answered before.
            answers = half.count(b"\r\n\r\n") * half.startswith(b"GET")
            assert received.count(b"HTTP/1.1 ") == answers, half
    assert time.monotonic() - begun < 10
    assert ask(strict[0], {"instances": ["good"]}).status_code == 200


@needs_kserve
def test_a_client_that_sends_a_byte_now_and_then_is_not_waited_for(strict):
    client, path = connected(strict[0])
    with client, pytest.raises(OSError):
        client.sendall(b"POST %b HTTP/1.1\r\nContent-Length: 100\r\n\r\n" % path)
        for _ in range(30):
            client.sendall(b" ")
            time.sleep(0.2)


@needs_kserve
@pytest.mark.parametrize("head", [b"GET /", b"GET / HTTP/1.1\r\nX: "])
def test_headers_without_an_end_are_not_read_for_ever(head, strict):
    client, _ = connected(strict[0])
    with client, pytest.raises(OSError):
        client.sendall(head)
        for _ in range(1000):
            client.sendall(b"x" * 9999)  # 10 MB, of which far fewer are taken.


@needs_kserve
def test_a_request_that_is_too_large_gets_a_sentence_and_code_413(strict):
    large = json.dumps({"instances": ["good " * 50_000]}).encode()
    for contents in (large, (large[i : i + 9999] for i in range(0, len(large), 9999))):  # Chunked.
        refused = requests.post(strict[0], data=contents, timeout=60)
        assert refused.status_code == 413
        assert refused.json() == {"error": "the request is larger than 200000 bytes."}


@needs_kserve
def test_an_image_that_would_fill_the_memory_is_refused_before_it_is_decoded(any_size):
    bomb = made_exports.claimed_png(20_000)
    files = [b64(png(np.zeros([8, 9, 3], np.uint8))), b64(bomb)]
    response = ask(any_size, {"signature_name": "serving_bytes", "instances": files})
    assert response.status_code == 400, response.text
    assert response.json()["error"].startswith("instance 1, from 0: image has more than 50000000")


@needs_kserve
def test_a_refused_request_leaves_one_line_of_reason_and_a_flood_of_them_few(strict):
    url, log = strict
    before = log.read_text()
    assert ask(url, {"instances": ["\x1b[31m\n" * 100, ""]}).status_code == 400
    assert ask(url, {"signature_name": "x" * 10**4, "instances": []}).status_code == 400
    assert ask(url.replace("reviews", "o" * 10**4), {"instances": []}).status_code == 404
    lines = log.read_text()[len(before) :].splitlines()
    assert len(lines) == 6, lines  # With those of the access log.
    assert sum("refused: " in line for line in lines) == 3
    assert max(map(len, lines)) < 400
    with requests.Session() as session:
        for _ in range(500):
            session.post(url, data=b"{}", timeout=60)
    text = log.read_text()
    assert "Traceback" not in text and "\x1b" not in text
    # A new minute may have begun meanwhile.
    assert len(text.splitlines()) < 2 * 400 + 50


# A server that takes its time, and is given little when it has to end.
SLOW = (
    """
import time
from keras_ldam.serving import server

def answer(model, payload):
    print("asked", file=sys.__stdout__, flush=True)
    time.sleep(0.5)
    return {"predictions": ["late"]}

server.ServedModel._predict = answer
"""
    + SERVE
)


@needs_kserve
def test_a_server_told_to_end_still_answers_and_waits_little_for_half_a_request(
    text_export, start, tmp_path
):
    program = start(text_export, tmp_path / "log", program=SLOW, settings={"GRACE_SECONDS": 2})
    with program, ThreadPoolExecutor(1) as clients:
        try:
            url = json.loads(program.stdout.readline())["url"]
            half, path = connected(url)
            with half:
                half.sendall(b"POST %b HTTP/1.1\r\nContent-Length: 100\r\n\r\n{" % path)
                whole = clients.submit(ask, url, {"instances": ["good"]})
                assert program.stdout.readline() == b"asked\n"
                program.terminate()
                assert whole.result().json() == {"predictions": ["late"]}
                program.wait(15)  # KServe's own patience ends after 30 seconds.
        finally:
            program.kill()


# ----------------------------------------------------------------------------- wrong settings


WRONG = """
import json, sys
from keras_ldam.serving import server

path, several = json.loads(sys.argv[1])
for arguments in several:
    try:
        next(server.serve(path, **{"port": 0, **arguments}))
    except ValueError as error:
        print(error)
"""


@needs_kserve
def test_wrong_arguments_get_a_sentence(text_export, forks):
    arguments = [{"port": 70_000}, {"name": "a/b"}, {"host": "192.0.2.1"}]
    done = forks.run(WRONG, json.dumps([str(text_export), arguments]))
    assert done.returncode == 0, done.stderr[-2000:]
    port, name, host = done.stdout.splitlines()
    assert port == "`port` must be from 0 to 65535. Received: 70000"
    assert name.endswith("'.', '_' and '-'. Received: 'a/b'")
    assert host.startswith("Cannot listen at 192.0.2.1, port 0: ")


def test_without_kserve_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "kserve", None)
    monkeypatch.delitem(sys.modules, "keras_ldam.serving.server", raising=False)
    with pytest.raises(MissingExtraError, match=r"needs kserve.* 'keras_ldam\[serve\]'"):
        import keras_ldam.serving.server  # noqa: F401
