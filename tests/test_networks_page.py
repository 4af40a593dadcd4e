"""The guide on other networks quotes its benchmark."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent


def page():
    spec = importlib.util.spec_from_file_location("networks_page", ROOT / "docs" / "networks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_guide_has_the_table_of_the_benchmark():
    assert page().table() in (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")


def test_no_run_with_the_defaults_stayed_at_one_class():
    for run in page().runs("networks"):
        if run["row"] == "LDAM-DRW":
            assert run["epochs"][-1]["one_class"] < 0.999, (run["network"], run["seed"])
