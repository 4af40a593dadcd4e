"""Guides quote the tables of their benchmarks."""

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("program", "guide"),
    [
        ("adjustment_table", "probabilities"),
        ("ingredients_table", "stronger"),
        ("many_classes", "many_classes"),
        ("pretrained_table", "datasets"),
    ],
)
def test_a_guide_has_the_table_of_its_benchmark(program, guide):
    table = runpy.run_path(ROOT / "docs" / f"{program}.py")["table"]
    assert table() in (ROOT / "docs" / f"{guide}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("dataset", "recipe"), [("cifar10", "fast"), ("cifar10", "")])
def test_the_guide_has_the_tables_of_the_ablations(dataset, recipe):
    table = runpy.run_path(ROOT / "docs" / "ablation_table.py")["table"](dataset, recipe)
    assert table.count("\n") > 2
    assert table in (ROOT / "docs" / "stronger.md").read_text(encoding="utf-8")


def test_every_row_of_the_benchmark_of_adjustments_has_its_runs():
    found = json.loads((ROOT / "benchmarks" / "adjustment.json").read_text())
    for row in found["rows"]:
        runs = [
            run
            for run in found["runs"]
            if (run["dataset"], run["method"]) == (row["dataset"], row["method"])
        ]
        assert len({run["seed"] for run in runs}) == len(runs) == row["seeds"]
        assert {run["config"]["epochs"] for run in runs} == {row["epochs"]}
