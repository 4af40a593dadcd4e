"""bin/predict and bin/serve: what they print, and to which of the two outputs."""

import io
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import requests

from keras_ldam.experiments import cli

ROOT = Path(__file__).parent.parent.parent
OWN = Path(os.environ.get("SERVING_PYTHON", ROOT / ".venv-serving" / "bin" / "python"))
PYTHON = OWN if OWN.exists() else Path(sys.executable) if find_spec("kserve") else None
needs_kserve = pytest.mark.skipif(
    PYTHON is None, reason="KServe is not installed; `make serving` installs it in .venv-serving"
)


def test_a_folder_without_an_exported_model_is_refused(tmp_path, capsys):
    assert cli.main("predict", [f"--model={tmp_path / 'model'}", "good"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "no such folder" in printed.err
    assert len(printed.err.strip().splitlines()) == 1


def test_lines_come_from_standard_input_without_their_ends(text_export, monkeypatch, capsys):
    lines = b"good film\r\n\xff\n\ngood film"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert cli.main("predict", [f"--model={text_export}"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer.get("error") for answer in answers] == [
        None,
        "text is not valid UTF-8",
        "text is empty",
        None,
    ]
    assert answers[0]["probabilities"] == pytest.approx(answers[3]["probabilities"], abs=1e-6)


def test_a_file_in_utf_16_is_refused(text_export, monkeypatch, capsys):
    lines = io.BytesIO("good\nfilm\n".encode("utf-16"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(lines))
    assert cli.main("predict", [f"--model={text_export}"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "convert them to UTF-8" in printed.err


def test_the_program_answers_each_line_of_a_pipe_at_once(text_export):
    command = [sys.executable, ROOT / "bin" / "predict", "--model", text_export]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **pipes) as program:
        for number, line in enumerate((b"good", b"", b"film"), start=1):
            program.stdin.write(line + b"\n")
            program.stdin.flush()
            # If it waited for more lines, this would never return.
            assert json.loads(program.stdout.readline())["line"] == number
        program.stdin.close()
        assert program.stdout.read() == b""
    assert program.returncode == 0


@needs_kserve
def test_the_server_prints_its_address_and_logs_elsewhere(text_export, tmp_path):
    command = [PYTHON, ROOT / "bin" / "serve", "--model", text_export, "--port=0", "--name=x"]
    with open(tmp_path / "log", "wb") as log:
        program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
    with program:
        try:
            printed = program.stdout.readline()
            assert printed, (tmp_path / "log").read_text()[-2000:]
            url = json.loads(printed)["url"]
            answer = requests.post(url, data=b'{"instances": ["good"]}', timeout=60)
            assert answer.json()["predictions"][0]["label"] in ("negative", "positive")
        finally:
            program.terminate()
        assert program.stdout.read() == b""
    assert "POST /v1/models/x" in (tmp_path / "log").read_text()


def test_without_kserve_the_program_says_how_to_get_it(text_export, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "kserve", None)
    monkeypatch.delitem(sys.modules, "keras_ldam.serving.server", raising=False)
    assert cli.main("serve", [f"--model={text_export}"]) == 2
    assert "needs kserve" in capsys.readouterr().err
