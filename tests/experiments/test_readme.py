"""The tables of the documents are those that the committed results give."""

import json
import re
import runpy
import types
from pathlib import Path

import numpy as np
import pytest

from keras_ldam.experiments import tables

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("dataset", ["imdb", "cifar10", "cifar100"])
def test_results_page_has_the_table_of_the_results(dataset):
    runs = tables.gather([ROOT / "results" / f"{dataset}.json"])
    printed = tables.markdown(tables.headline(runs, only_ours=True))
    table = "\n".join(line for line in printed.splitlines() if line.startswith("|"))
    assert table in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def front_page():
    return types.SimpleNamespace(**runpy.run_path(ROOT / "docs" / "front_page.py"))


def test_readme_has_the_table_of_the_results(front_page):
    assert front_page.table() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_the_readme_is_as_accurate_as_the_tables_of_the_report(front_page):
    for dataset in front_page.DATASETS:
        runs = tables.gather([ROOT / "results" / f"{dataset}.json"])
        printed = tables.markdown(tables.headline(runs, only_ours=True))
        ours = [
            line.rsplit("|", 2)[1].strip()
            for line in front_page.table().splitlines()
            if line.rsplit("|", 2)[1].strip() in printed
        ]
        assert len(ours) >= 3, dataset


def test_the_picture_of_the_readme_is_drawn_from_the_results(front_page, tmp_path):
    pytest.importorskip("matplotlib")
    front_page.draw(tmp_path / "groups.png")
    assert (tmp_path / "groups.png").stat().st_size > 10_000


def test_readme_says_where_the_paper_is_not_confirmed(front_page):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    late, ldam = (sum(front_page.errors("imdb", method)) for method in ("ce_drw", "ldam_drw"))
    assert ("CE-DRW is ahead of LDAM-DRW" in " ".join(readme.split())) == (late < ldam)


@pytest.mark.parametrize("file", ["fast/cifar10", "fast/cifar100", "fast_150/cifar10"])
def test_what_the_fast_recipe_reaches_is_one_of_the_results(file):
    runs = json.loads((ROOT / "results" / f"{file}.json").read_text())["runs"]
    errors = [run["last"]["mean_error"] for run in runs]
    reached = f"{np.mean(errors):.2f} ± {np.std(errors, ddof=1):.2f} (n={len(errors)}"
    seconds = sorted(round(run["seconds"]) for run in runs)
    text = " ".join((ROOT / "docs" / "stronger.md").read_text(encoding="utf-8").split())
    assert f"{reached}, last epoch" in text
    assert f"{seconds[0]} to {seconds[-1]} seconds" in text
    assert reached in (ROOT / "README.md").read_text("utf-8")


def test_what_the_strong_recipe_reaches_is_its_result():
    (run,) = json.loads((ROOT / "results" / "strong" / "cifar10.json").read_text())["runs"]
    text = " ".join((ROOT / "docs" / "stronger.md").read_text(encoding="utf-8").split())
    assert f"mean error of {run['last']['mean_error']:.2f} this way (n=1, last epoch" in text
    assert f"after {run['seconds']:,.0f} seconds" in text
    file = ROOT / "results" / "strong_margin_0.5" / "cifar10.json"
    (run,) = json.loads(file.read_text())["runs"]
    assert f"the mean error is {run['last']['mean_error']:.2f} (n=1, last epoch" in text


def test_every_error_that_the_remedies_name_is_one_of_the_results(front_page):
    runs, known = {}, set()
    for dataset in (*front_page.DATASETS, "digits"):
        for run in json.loads((ROOT / "results" / f"{dataset}.json").read_text())["runs"]:
            runs.setdefault((dataset, run["method"]), []).append(run["last"]["mean_error"])
    encoders = json.loads((ROOT / "benchmarks" / "pretrained.json").read_text())
    for part, measured in encoders.items():
        for method, found in measured["found"].items():
            runs[part, method] = [run["mean_error"] for run in found]
    for errors in runs.values():
        known.add(f"{np.mean(errors):.2f}")
    text = (ROOT / "docs" / "remedies.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\d.])\d\d?\.\d\d(?![\d.])", text))
    assert named and named <= known


def test_the_remedies_name_the_errors_of_the_groups_in_the_picture(front_page):
    text = (ROOT / "docs" / "remedies.md").read_text(encoding="utf-8")
    for group in ("many", "few"):
        for method in ("erm", "ldam_drw"):
            assert f"{np.mean(front_page.errors('cifar100', method, f'{group}_error')):.1f}" in text
