"""KServe's server with an exported model, started as a user starts it and asked over HTTP."""

import base64
import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest
import requests
import tensorflow as tf

import keras_ldam
from keras_ldam.experiments import cli, datasets
from keras_ldam.experiments.run_folder import RunFolder

ROOT = Path(__file__).parent.parent
# TensorFlow, tensorflow_text and KServe, which wants older packages than requirements.txt names.
OWN = Path(os.environ.get("SERVING_PYTHON", ROOT / ".venv-serving" / "bin" / "python"))
PYTHON = OWN if OWN.exists() else Path(sys.executable) if find_spec("kserve") else None
needs_kserve = pytest.mark.skipif(
    PYTHON is None, reason="KServe is not installed; `make serving` installs it in .venv-serving"
)


def start(model, log, *flags):
    with open(log, "wb") as file:
        return subprocess.Popen(
            [PYTHON, ROOT / "bin" / "serve", "--model", model, "--port=0", *flags],
            stdout=subprocess.PIPE,
            stderr=file,
        )


@pytest.fixture(scope="module")
def any_size_export(tmp_path_factory):
    """The folder of an exported model of images of any size."""
    inputs = keras.Input((None, None, 3))
    outputs = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(inputs))
    folder = tmp_path_factory.mktemp("exports") / "any_size"
    return keras_ldam.export_saved_model(keras.Model(inputs, outputs), folder, class_names="ab")


@pytest.fixture(scope="module")
def urls(digits_export, text_export, any_size_export, tmp_path_factory):
    """Where the exports are served; each by a process of its own, on loopback."""
    logs = [tmp_path_factory.mktemp("logs") / "log" for _ in range(3)]
    programs = [
        start(Path(digits_export["folder"]).parent, logs[0]),
        start(text_export, logs[1], "--name=reviews"),
        start(any_size_export, logs[2]),
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
def pixels(finished_run):
    return datasets.load(RunFolder(finished_run).read_config()).test.examples[:16]


def ask(url, request):
    contents = request if isinstance(request, bytes) else json.dumps(request)
    return requests.post(url, data=contents, timeout=60)


def b64(contents):
    return {"b64": base64.b64encode(contents).decode()}


def png(image):
    return tf.io.encode_png(image).numpy()


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
def test_pixels_and_files_are_answered_in_tensorflow_servings_form(images, digits_export, pixels):
    outputs = expected(digits_export["folder"], image=pixels)
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


def image(height, width, value=0):
    return [[[value]] * width] * height


@needs_kserve
@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"instances": [""]}, "text is empty"),
        ({"instances": ["good", "x" * 10**6]}, "instance 1, from 0: text is longer than 100000"),
        ({"instances": [b64(b"good \xff\xfe")]}, "text is not valid UTF-8"),
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
def test_files_of_several_sizes_are_answered_together_as_each_by_itself(any_size, rng):
    sizes = [(8, 8), (9, 9), (8, 8), (5, 7)]
    files = [b64(png(rng.integers(0, 256, (*size, 3), np.uint8))) for size in sizes]

    def answers(files):
        response = ask(any_size, {"signature_name": "serving_bytes", "instances": files})
        assert response.status_code == 200, response.text
        return response.json()["predictions"]

    alone = [answer for file in files for answer in answers([file])]
    for together, each in zip(answers(files), alone, strict=True):
        assert together["label"] == each["label"]
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
    images, digits_export, pixels
):
    outputs = expected(digits_export["folder"], image=pixels)

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
        assert "keeps the one model that it was started with" in refused.json()["error"]
    assert ask(texts, {"instances": ["good"]}).status_code == 200


# A server that takes its time, and is given little when it has to end.
SLOW = """
import sys, time
from keras_ldam.serving import server as serving

def answer(model, payload):
    print("asked", flush=True)
    time.sleep(0.5)
    return {"predictions": ["late"]}

serving.GRACE_SECONDS = 2
serving.ServedModel._predict = answer
for started in serving.serve(sys.argv[1], port=0):
    print(started["url"], flush=True)
"""


@needs_kserve
def test_a_server_told_to_end_still_answers_and_waits_little_for_half_a_request(
    text_export, tmp_path
):
    command = [PYTHON, "-c", SLOW, text_export]
    with (
        open(tmp_path / "log", "wb") as log,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log) as program,
        ThreadPoolExecutor(1) as clients,
    ):
        try:
            url = program.stdout.readline().decode().strip()
            _, _, address, path = url.split("/", 3)
            host, port = address.split(":")
            with socket.create_connection((host, int(port))) as half:
                half.sendall(f"POST /{path} HTTP/1.1\r\nContent-Length: 100\r\n\r\n{{".encode())
                whole = clients.submit(ask, url, {"instances": ["good"]})
                assert program.stdout.readline() == b"asked\n"
                program.terminate()
                assert whole.result().json() == {"predictions": ["late"]}
                program.wait(15)  # KServe's own patience ends after 30 seconds.
        finally:
            program.kill()


@needs_kserve
def test_a_port_that_is_taken_ends_with_one_sentence_and_code_2(texts, text_export):
    port = texts.split(":")[2].split("/")[0]
    done = subprocess.run(
        [PYTHON, ROOT / "bin" / "serve", "--model", text_export, "--port", port],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert done.returncode == 2
    assert f"port {port}: Address already in use" in done.stderr
    assert done.stdout == ""


def test_without_kserve_the_program_says_how_to_get_it(text_export, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "kserve", None)
    monkeypatch.delitem(sys.modules, "keras_ldam.serving", raising=False)
    assert cli.main("serve", [f"--model={text_export}"]) == 2
    assert "needs the package kserve" in capsys.readouterr().err
