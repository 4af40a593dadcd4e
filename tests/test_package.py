"""What an installation and a source archive hold."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUILD = """
import sys
from setuptools import build_meta
target = sys.argv[1]
build_meta.build_sdist(target)
build_meta.build_wheel(target)
"""


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The names in the source archive, without its first folder, and those in the wheel."""
    pytest.importorskip("setuptools")
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.splitlines()
    if not files:
        pytest.skip("this is not a checkout")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in files:
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, target], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (sdist,), (wheel,) = target.glob("*.tar.gz"), target.glob("*.whl")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        return set(files), inside, set(archive.namelist())


def test_the_source_archive_holds_every_file(archives):
    files, inside, _ = archives
    missing = {name for name in files if (ROOT / name).exists()} - inside
    assert not {name for name in missing if not name.startswith((".ci", "MANIFEST.in"))}


def test_the_wheel_holds_the_package_and_nothing_else(archives):
    files, _, inside = archives
    package = {name for name in files if name.startswith("keras_ldam/") and (ROOT / name).exists()}
    assert package <= inside
    tops = {name.split("/")[0] for name in inside}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "keras_ldam",
        "keras_ldam_program.py",
    }
    recipes = {path.name for path in (ROOT / "configs").glob("*.py")}
    assert {f"keras_ldam/experiments/configs/{name}" for name in recipes} <= inside


def test_the_wheel_holds_no_tests_and_no_results(archives):
    inside = archives[2]
    assert not [name for name in inside if "/tests/" in name or "results" in name.split("/")]
