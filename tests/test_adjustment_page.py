"""The guide on probabilities quotes its benchmark."""

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parent.parent


def page():
    path = ROOT / "docs" / "adjustment_table.py"
    spec = importlib.util.spec_from_file_location("adjustment_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_guide_has_the_table_of_the_benchmark():
    assert page().table() in (ROOT / "docs" / "probabilities.md").read_text(encoding="utf-8")


def test_every_row_of_the_benchmark_has_its_runs():
    found = json.loads((ROOT / "benchmarks" / "adjustment.json").read_text())
    for row in found["rows"]:
        runs = [
            run
            for run in found["runs"]
            if (run["dataset"], run["method"]) == (row["dataset"], row["method"])
        ]
        assert len({run["seed"] for run in runs}) == len(runs) == row["seeds"]
        assert {run["config"]["epochs"] for run in runs} == {row["epochs"]}
