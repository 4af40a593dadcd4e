"""Turns the tutorials of this folder into notebooks: text blocks become prose, the rest code.

python examples/notebooks.py FOLDER
"""

import ast
import json
import sys
from pathlib import Path


def cells(source: str) -> list[tuple[str, str]]:
    """Returns the cells of a tutorial: ("markdown", text) and ("code", text), in turn."""
    lines, found = source.splitlines(), []

    def keep(kind: str, text: str) -> None:
        if text.strip():
            found.append((kind, text.strip("\n")))

    at = 0
    for node in ast.parse(source).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            keep("code", "\n".join(lines[at : node.lineno - 1]))
            keep("markdown", node.value.value)
            at = node.end_lineno
    keep("code", "\n".join(lines[at:]))
    return found


def heading(text: str) -> str:
    """Returns the header of a tutorial as Markdown: its title and description."""
    fields = dict(line.split(": ", 1) for line in text.splitlines())
    return f"# {fields['Title']}\n\n{fields['Description']}"


def notebook(source: str) -> dict:
    """Returns a tutorial in the form of a notebook file."""
    (_, header), *rest = cells(source)
    found = [("markdown", heading(header)), *rest]
    made = []
    for number, (kind, text) in enumerate(found):
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        cell["source"] = text.splitlines(keepends=True)
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        made.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def main(folder: str) -> None:
    """Writes a notebook for each tutorial."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        if "\nTitle: " in source:
            target = Path(folder) / f"{path.stem}.ipynb"
            target.write_text(json.dumps(notebook(source), indent=1, ensure_ascii=False) + "\n")
            print(target)


if __name__ == "__main__":
    main(sys.argv[1])
