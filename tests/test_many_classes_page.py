"""The guide on very many classes quotes its benchmark."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_guide_has_the_table_of_the_benchmark():
    path = ROOT / "docs" / "many_classes.py"
    spec = importlib.util.spec_from_file_location("many_classes", path)
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    text = (ROOT / "docs" / "many_classes.md").read_text(encoding="utf-8")
    assert page.table() in text
