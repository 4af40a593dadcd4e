"""The guide on other networks quotes its benchmark."""

import math
import runpy
import types
from pathlib import Path

import numpy as np

from keras_ldam import advice, guards

ROOT = Path(__file__).parent.parent
WARNED = {
    ("LDAM-DRW", "MobileNet, 100 classes"),
    ("LDAM-DRW", "MobileNet, 100 classes, 24 epochs"),
}
"""Rows and networks of which the guards speak, each with good reason."""


def page():
    return types.SimpleNamespace(**runpy.run_path(ROOT / "docs" / "networks.py"))


def test_the_guide_has_the_tables_of_the_benchmark():
    text = (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")
    for table in (page().table(), page().held_out(), page().longer()):
        assert table in text


def test_the_sentences_beside_the_table_are_those_of_the_runs():
    text = " ".join((ROOT / "docs" / "networks.md").read_text(encoding="utf-8").split())
    found = {
        name: {row: np.array(rows[row]) for row in ("CE-DRW", "LDAM-DRW")}
        for name, rows in page().scores().items()
    }
    longer = found.pop(page().LONGER[1])
    behind = {n: rows["CE-DRW"].mean() - rows["LDAM-DRW"].mean() for n, rows in found.items()}
    far = [name for name, gap in behind.items() if gap > 1]
    assert far == ["MobileNet, 100 classes"] and len(behind) == 12 and "eleven of twelve" in text
    assert f"behind by {behind[far[0]]:.1f} points on MobileNet" in text
    cnn = found["text CNN"].values()
    error = math.sqrt(sum(values.var(ddof=1) / len(values) for values in cnn))
    assert (
        f"behind by {behind['text CNN']:.1f} points with a standard error of {error:.1f}, and ranks"
    ) in text
    gap = longer["CE-DRW"].mean() - longer["LDAM-DRW"].mean()
    error = math.sqrt(sum(values.var(ddof=1) / len(values) for values in longer.values()))
    assert (
        abs(gap) < 1
        and f"differ by {abs(gap):.1f} points with a standard error of {error:.1f}" in text
    )

    def areas(network):
        for row in ("LDAM-DRW", "CE-DRW"):
            runs = (
                r for r in page().runs("networks") if (r["network"], r["row"]) == (network, row)
            )
            yield 100 * np.mean([run["auc"] for run in runs])

    assert "(area under the ROC curve {:.1f} against {:.1f})".format(*areas("text CNN")) in text
    assert "ROC curve are {1:.1f} and {0:.1f}".format(*areas(page().LONGER[1])) in text


def test_no_run_with_the_defaults_stayed_at_one_class():
    for run in page().runs("networks"):
        if run["row"] == "LDAM-DRW":
            assert run["epochs"][-1]["one_class"] < 0.999, (run["network"], run["seed"])


def test_the_limits_of_the_guards_leave_out_every_run_that_left_one_class():
    for run in page().runs("networks"):
        found = run["facts"]["end"]["test"]
        if run["row"].startswith("LDAM-DRW"):
            assert found["one_class"] < guards.ONE_CLASS and found["zero"] < guards.ZERO
            assert found["resultant"] < guards.ONE_WAY and found["spread"] > guards.FLAT


def test_the_guards_say_nothing_in_the_runs_that_they_watched():
    watched = [run for run in page().runs("networks") if "warnings" in run]
    for run in watched:
        expected = (run["row"], run["network"]) in WARNED
        assert bool(run["warnings"]) == expected, (run["network"], run["row"], run["warnings"])
    assert len({run["network"] for run in watched}) >= 4


def test_text_networks_predict_one_class_for_as_many_steps_as_is_advised():
    batches = {"text CNN": 32, "text CNN, batch 256": 256, "mean embedding": 32, "transformer": 32}
    for run in page().runs("networks"):
        if run["network"] in batches:
            steps = math.ceil(6632 / batches[run["network"]])
            assert (run["leaves"] - 1) * steps >= advice._SLOW_START
