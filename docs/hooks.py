"""Lets pages link to files beside docs/: they are copied into the site, under files/."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
FOLDERS = ("results", "benchmarks", "configs", "examples")
_FLAG = re.compile(r"--[a-z]\w*")
_OUTSIDE = re.compile(r"\]\(\.\./([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files, config):
    """Adds the files that pages may link to, as text where a browser would not show them."""
    for path in sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.is_file()):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix in (".json", ".py", ".txt"):
            files.append(File.generated(config, f"files/{name}.txt", abs_src_path=str(path)))
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        depth = "../" * (name.count("/") + 1)
        text = re.sub(r"\]\((?!http|#)([^)]+\.(?:json|py))\)", r"](\1.txt)", text)
        text = re.sub(r"\]\(docs/([^)]+)\)", rf"]({depth}\1)", text)
        files.append(File.generated(config, f"files/{name}", content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns `](../results/x.json)` into a link inside the site, and inserts the quickstart."""

    folder = (ROOT / "docs" / page.file.src_uri).parent
    up = "../" * page.file.src_uri.count("/")

    def inside(link):
        target = (folder / ".." / link[1]).resolve()
        if target.is_relative_to(ROOT / "docs"):
            return link[0]
        name, anchor = target.relative_to(ROOT).as_posix(), link[2] or ""
        if target.is_dir():
            name = next(p for p in sorted(target.iterdir())).relative_to(ROOT).as_posix()
        suffix = "" if name.endswith(".md") else ".txt"
        return f"]({up}files/{name}{suffix}{anchor})"

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    quickstart = readme.split("## Quickstart")[1].split("\n## ")[0]
    markdown = markdown.replace("<!-- quickstart of README.md -->", quickstart)
    return _OUTSIDE.sub(inside, markdown)


def on_page_content(html, page, config, files):
    """Keeps spreads and flags on one line, marks long and short cells, drops lonely dashes."""
    html = re.sub(r"(?<=\d) (± [\d.]+)(?: (\(n=\d+\)))?", _unbroken, html)
    html = re.sub(r"<code>[^<]+</code>", lambda code: _FLAG.sub(_whole, code[0]), html)
    html = re.sub(r"(?<=<td>)[+-][\d.]+ \[[^\]<]*\]", _unbroken, html)
    html = re.sub(r"<td>(.*?)</td>", _width, html)
    return re.sub(r'(<li class="doc-section-item field-body">)\s*–', r"\1", html)


def _whole(match):
    return f'<span class="flag">{match[0]}</span>'


def _width(match):
    length = len(re.sub(r"<[^>]+>", "", match[1]))
    kind = "long" if length > 30 else "short" if length <= 20 else ""
    return f'<td class="{kind}">{match[1]}</td>' if kind else match[0]


def _unbroken(match):
    return match[0].replace(" ", "\N{NO-BREAK SPACE}")


def on_post_page(output, page, config):
    """Takes the worker that searches pages opened as files from this site, not from another."""
    return _own_worker(output, "../" * page.file.dest_uri.count("/"))


def on_post_template(output_content, template_name, config):
    """Does the same for the page of what was not found."""
    return _own_worker(output_content, "")


def _own_worker(html, to_root):
    return html.replace("https://unpkg.com/iframe-worker/shim", f"{to_root}worker.js")
