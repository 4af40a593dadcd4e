"""The documents: code blocks run, links lead somewhere, examples run, notebooks are made.

A fenced `python` block is run, all blocks of a page in one namespace and in order. What a page
takes for granted stands in a comment, `<!-- setup … -->`; `<!-- fragment -->` above a block says
that it cannot run by itself. Other blocks are for a terminal: their programs and flags are checked.
"""

import contextlib
import dataclasses
import json
import os
import pkgutil
import re
import runpy
import subprocess
import sys
from pathlib import Path

import keras
import pytest
from conftest import without_graphs

import keras_ldam

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "benchmarks" / "README.md",
]
BLOCKS = re.compile(
    r"<!-- setup\n(?P<setup>.*?)-->|(?P<fragment><!-- fragment -->\n+)?```python\n(?P<code>.*?)```",
    re.S,
)
TUTORIALS = [
    path for path in sorted((ROOT / "examples").glob("*.py")) if "\nTitle: " in path.read_text()
]


def names(paths):
    return [
        path.relative_to(ROOT).as_posix().removeprefix("docs/").removesuffix("/README.md")
        for path in paths
    ]


def python_of(page):
    """The code of a page that can run, with line numbers as in the page."""
    text = page.read_text(encoding="utf-8")
    lines = [""] * text.count("\n")
    for block in BLOCKS.finditer(text):
        kind = "setup" if block["setup"] is not None else "code"
        if block["fragment"]:
            continue
        start = text[: block.start(kind)].count("\n")
        code = block[kind].splitlines()
        lines[start : start + len(code)] = code
    return "\n".join(lines)


RUN = [page for page in PAGES if python_of(page).strip() and page.name != "README.md"]
EAGER = (
    "datasets",
    "fraud_table",
    "image_folder_transfer",
    "losses",
    "many_classes",
    "margins",
    "multi_label",
    "segmentation_with_void",
    "stronger",
    "targets",
    "texts_from_csv",
    "train_export_serve_ask",
)
"""Pages and examples whose few steps take less than tracing them."""


def graphs_of(name):
    return without_graphs() if name in EAGER else contextlib.nullcontext()


@pytest.mark.parametrize("page", RUN, ids=names(RUN))
def test_code_blocks_run(page, tmp_path, monkeypatch):
    pytest.importorskip("tensorflow")
    monkeypatch.chdir(tmp_path)
    with graphs_of(page.stem):
        exec(compile(python_of(page), str(page), "exec"), {"__name__": "page"})


def test_the_lines_for_a_model_of_your_own_in_the_readme_are_those_that_the_site_runs():
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## In your own model")[1]
    lines = re.search(r"```python\n(.*?)```", section, re.S)[1]
    assert lines in python_of(ROOT / "docs" / "index.md")


def anchors_of(page):
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors_of(target), link


def test_every_page_is_in_the_navigation():
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    assert not [page for page in pages if f" {page.as_posix()}\n" not in config]


def test_the_reference_has_every_public_name_once():
    pages = sorted((ROOT / "docs" / "reference").glob("*.md"))
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    listed = re.findall(r"^::: (\S+)$", text, re.M)
    assert len(listed) == len(set(listed))
    by_name = {path.rpartition(".")[2]: ":".join(path.rsplit(".", 1)) for path in listed}
    assert not set(keras_ldam.__all__) - set(by_name)
    for name in keras_ldam.__all__:
        assert pkgutil.resolve_name(by_name[name]) is getattr(keras_ldam, name)


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_commands_name_programs_and_flags_that_exist(page):
    config = pytest.importorskip("keras_ldam.experiments.config")
    sources = "".join(path.read_text() for path in (ROOT / "keras_ldam_program.py",))
    sources += (ROOT / "keras_ldam" / "experiments" / "cli.py").read_text()
    fields = {field.name for field in dataclasses.fields(config.Config)}
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for program, rest in re.findall(r"\bbin/([a-z]+)\b([^\n`|]*)", text):
        if (ROOT / ".venv" / "bin" / program).exists() or program in (
            "python",
            "pip",
            "pre",
            "activate",
        ):
            continue
        assert (ROOT / "bin" / program).exists(), program
        for flag in re.findall(r"(?<!\S)--(?:no)?(\w+)", rest):
            known = flag in fields or f'"{flag}"' in sources or f'"no{flag}"' in sources
            assert known or flag == "help", f"bin/{program} --{flag}"


BACKENDS = {"custom_training_loop": ("tensorflow", "jax")}


@pytest.mark.parametrize(
    ("name", "backend"),
    [(path.stem, b) for path in TUTORIALS for b in BACKENDS.get(path.stem, ("tensorflow",))],
)
def test_examples_run(name, backend, tmp_path, monkeypatch, capsys, request):
    for module in ("sklearn", backend):
        pytest.importorskip(module)
    script = str(ROOT / "examples" / f"{name}.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SMOKE", "1")
    if backend == keras.backend.backend():
        with graphs_of(name):
            runpy.run_path(script, run_name="__main__")  # A process would import TensorFlow anew.
        printed = capsys.readouterr().out
    else:
        program = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
        done = request.getfixturevalue("on_jax")(program, script)
        assert done.returncode == 0, done.stderr
        printed = done.stdout
    assert "|" in printed, "no table"


@pytest.mark.parametrize("example", TUTORIALS, ids=names(TUTORIALS))
def test_what_an_example_printed_is_committed(example):
    printed = (ROOT / "results" / "examples" / f"{example.stem}.txt").read_text(encoding="utf-8")
    assert "without" in printed and "±" in printed


def test_the_page_of_the_examples_has_what_they_printed():
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8").splitlines()
    for example in TUTORIALS:
        printed = (ROOT / "results" / "examples" / f"{example.stem}.txt").read_text("utf-8")
        assert not {line.rstrip() for line in printed.splitlines()} - {*page}, example.name


def test_examples_become_notebooks(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "notebooks.py"), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    made = sorted(tmp_path.glob("*.ipynb"))
    assert [path.stem for path in made] == [path.stem for path in TUTORIALS]
    for path in made:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        kinds = [cell["cell_type"] for cell in notebook["cells"]]
        assert kinds[0] == "markdown" and "code" in kinds


def test_site_is_built_without_a_warning(tmp_path):
    mkdocs = ROOT / ".venv-docs" / "bin" / "mkdocs"
    if not mkdocs.exists():
        pytest.skip("`make docs` makes the environment that this needs")
    done = subprocess.run(
        [mkdocs, "build", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]*)"', page.read_text()
        )
        assert not loaded, page
