"""A page as a browser shows it; skipped where no Chromium is installed."""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest
from made_runs import made_up_run

from keras_ldam import report
from keras_ldam.report import tables
from keras_ldam.report.page import SECTIONS

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

# Runs after the page has been laid out, and tells the document around it what it measured.
PROBE = """
<script>
const found = {width: innerWidth, needed: document.documentElement.scrollWidth, sections: {}};
const body = getComputedStyle(document.body);
found.ink = body.color; found.paper = body.backgroundColor;
const size = element => { const box = element.getBoundingClientRect();
  return Math.max(box.width, box.height); };
for (const section of document.querySelectorAll("section[id]")) {
  const svg = [...section.querySelectorAll("svg")].find(figure => size(figure) > 0);
  if (!svg) continue;
  const edge = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll("text")];
  const panels = [...svg.querySelectorAll('g[id*="-axes_"]')].map(axes => ({
    size: size(axes),
    labels: axes.querySelectorAll("text").length,
    marks: [...axes.querySelectorAll("path, use, image, rect")].filter(mark =>
      !mark.closest("defs, clipPath") && !mark.closest('[id*="matplotlib.axis"]')
      && !/patch_[2-6]$/.test(mark.parentNode.id) && size(mark) > 0).length,
  }));
  found.sections[section.id] = {
    width: edge.width,
    panels: panels,
    inks: [...new Set(texts.map(text => getComputedStyle(text).fill))],
    outside: texts.filter(text => { const box = text.getBoundingClientRect();
      return box.left < edge.left - 2 || box.right > edge.right + 2
        || box.top < edge.top - 2 || box.bottom > edge.bottom + 2; })
      .map(text => text.textContent),
  };
}
parent.postMessage(JSON.stringify(found), "*");
</script>
"""

# A window cannot be narrower than 500 pixels, a frame can.
AROUND = """<!doctype html><pre id="probe"></pre>
<script>onmessage = event => document.getElementById("probe").textContent = event.data;</script>
<iframe src="page.html" style="border: 0" width="{width}" height="900"></iframe>
"""


def open_page(text, folder, *, width=1400, dark=False):
    """Opens a page; returns what the probe measured, and the console's messages."""
    (folder / "page.html").write_text(text.replace("</body>", PROBE + "</body>"))
    file = folder / "around.html"
    file.write_text(AROUND.format(width=width))
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
            "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}",
            f"--window-size={width + 50},950", "--virtual-time-budget=5000",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}", file.as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    measured = re.search(r'<pre id="probe">(.+?)</pre>', done.stdout, re.S)
    assert measured, "the probe did not run"
    return json.loads(unescape(measured[1])), console


@pytest.fixture(scope="module")
def text():
    counts = [400, 277, 192, 133, 92, 64, 44, 31, 21, 15]
    runs = [made_up_run(counts, title) for title in ("ERM", "RW", "CE-DRW")]
    demanded = [0.1] * len(counts)
    runs.append(made_up_run(counts, "LDAM-DRW", better=0.1, start_epoch=3, demanded=demanded))
    return report.page(runs, tables.plain(runs, "Digits"), runs)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_every_figure_is_there_and_the_console_is_silent(text, tmp_path, width, dark):
    found, console = open_page(text, tmp_path, width=width, dark=dark)
    assert console == []
    assert found["width"] == width
    assert found["needed"] <= width, "the page scrolls sideways"
    assert list(found["sections"]) == list(SECTIONS)
    assert (found["ink"], found["paper"]) == (
        ("rgb(232, 232, 236)", "rgb(22, 23, 27)")
        if dark
        else ("rgb(27, 27, 31)", "rgb(255, 255, 255)")
    )
    for name, section in found["sections"].items():
        assert section["width"] > 0.6 * min(width, 928), name
        assert section["panels"], name
        for panel in section["panels"]:
            assert panel["size"] > 20 and panel["labels"] > 0 and panel["marks"] > 0, (name, panel)
        assert found["ink"] in section["inks"], name
        assert section["outside"] == [], name


def test_the_probe_sees_an_error_in_the_console_and_an_empty_panel(text, tmp_path):
    broken = text.replace("</main>", "<script>nothing.of.this()</script></main>")
    _, console = open_page(broken, tmp_path)
    assert len(console) == 1 and "nothing is not defined" in console[0]
    # Of the curves everything is taken away but the axes and the frame.
    emptied = re.sub(
        r'<g id="curves-w-line2d_\d+">(?:(?!<g ).)*?<path.*?</g>', "", text, flags=re.S
    )
    found, _ = open_page(emptied, tmp_path)
    assert any(panel["marks"] == 0 for panel in found["sections"]["curves"]["panels"])
