"""The quickstart of the README runs, with Keras, NumPy and one backend."""

import re
from pathlib import Path

from conftest import needs_jax

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def quickstart():
    return re.search(r"```python\n(.*?)```", README.split("## Quickstart")[1], re.S)[1]


def test_quickstart_is_short():
    assert len(quickstart().splitlines()) <= 25
    assert len(README.splitlines()) <= 150


def test_readme_shows_what_the_quickstart_printed():
    printed = (ROOT / "results" / "examples" / "quickstart.txt").read_text(encoding="utf-8")
    assert f"```text\n{printed}```" in README


def test_quickstart_runs_and_misses_fewer_of_the_rarest(tmp_path, monkeypatch, capsys):
    needs_jax()
    monkeypatch.chdir(tmp_path)
    assert quickstart().count("epochs=30") == 1
    # A third of the epochs.
    exec(quickstart().replace("epochs=30", "epochs=10"), {"__name__": "quickstart"})
    printed = capsys.readouterr().out
    plain, ldam = map(float, re.findall(r"rarest two classes ([\d.]+)%", printed))
    assert ldam < plain - 10, printed
