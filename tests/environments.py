"""Runs the tests in a fresh environment other than the one of requirements.txt.

    python tests/environments.py lean .venv-lean      # the wheel with Keras, NumPy and JAX alone
    python tests/environments.py oldest .venv-oldest  # the lower bounds that setup.cfg names
    python tests/environments.py backends .venv-backends  # the library on torch, JAX and TensorFlow

The variable TORCH names the torch to install, such as a build for CPUs only; the newest by default.
An environment is created once and used again as long as setup.cfg stays the same.
"""

import configparser
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ABSENT = ("tensorflow", "tensorflow_datasets", "sklearn", "matplotlib")
"""What the library must do without. (SciPy comes with JAX, absl with Keras.)"""
LEAN_TESTS = (
    "library/test_adjust.py",
    "library/test_adversarial.py",
    "library/test_averaging.py",
    "library/test_chunked.py",
    "library/test_losses.py",
    "library/test_layers.py",
    "library/test_metrics.py",
    "library/test_mixing.py",
    "library/test_sharpness.py",
    "library/test_class_margins.py",
    "library/test_class_means.py",
    "library/test_probabilities.py",
    "library/test_callbacks.py",
    "library/test_counts.py",
    "library/test_advice.py",
    "library/test_optimizers.py",
    "library/test_schedules.py",
    "library/test_targets.py",
    "library/test_augmentation.py",
    "library/test_evaluation.py",
    "library/test_extras.py",
    "library/test_readme_snippet.py",
    "library/test_sharding.py",
)
"""The library's tests that need Keras, NumPy and a backend only."""


def main(which: str, folder: str) -> int:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    options, extras = settings["options"], settings["options.extras_require"]
    python = Path(folder).absolute() / "bin" / "python"
    if which == "lean":
        packages = ["jax", "pytest", "pytest-xdist"]
    elif which == "backends":
        packages = [line for line in options["install_requires"].split("\n") if line]
        packages += [line for line in extras["export"].split("\n") if line]
        packages += ["jax", os.environ.get("TORCH", "torch"), "pytest", "pytest-xdist"]
    else:
        named = [options["install_requires"]]
        named += [extras[name] for name in ("export", "report", "experiments", "jax")]
        packages = sorted({lowest(line) for text in named for line in text.split("\n") if line})
        # Newer ones need NumPy 2.
        packages += ["pyarrow<21", "pytest", "pytest-xdist", "ruff", "mypy"]
    create(Path(folder), packages)
    if which == "lean":
        install_wheel(python)
        return run_lean(python)
    pip(python, "install", "--no-deps", "--editable", str(ROOT))
    if which == "backends":
        return max(run_library(python, backend) for backend in ("torch", "jax", "tensorflow"))
    return subprocess.call(
        [python, "-m", "pytest", "-n", "3", "--dist", "worksteal", "-p", "no:cacheprovider"],
        cwd=ROOT,
        # Old packages warn of one another.
        env={**os.environ, "PYTEST_ADDOPTS": "-o filterwarnings=default"},
    )


def lowest(requirement: str) -> str:
    """`name==1.2` for `name>=1.2,<3`."""
    return re.sub(r">=([^,]+).*", r"==\1", requirement)


def create(folder: Path, packages: list[str]) -> None:
    mark = folder / ".made"
    made_of = hashlib.sha256("\n".join(packages).encode()).hexdigest()
    if mark.exists() and mark.read_text() == made_of:
        return
    subprocess.check_call([sys.executable, "-m", "venv", "--clear", folder])
    python = folder.absolute() / "bin" / "python"
    pip(python, "install", "--upgrade", "pip")
    pip(python, "install", *packages)
    mark.write_text(made_of)


def install_wheel(python: Path) -> None:
    """Builds the wheel and installs it with what it requires."""
    with tempfile.TemporaryDirectory() as folder:
        pip(python, "wheel", "--no-deps", "--wheel-dir", folder, str(ROOT))
        (wheel,) = Path(folder).glob("*.whl")
        pip(python, "install", "--force-reinstall", "--no-deps", str(wheel))
        pip(python, "install", str(wheel))


def run_lean(python: Path) -> int:
    found = subprocess.run(
        [
            python,
            "-c",
            f"import importlib.util as u; print([m for m in {ABSENT} if u.find_spec(m)])",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    if found != "[]":
        print(f"the lean environment holds {found}", file=sys.stderr)
        return 1
    return run_library(python, "jax")


def run_library(python: Path, backend: str) -> int:
    """Runs the library's tests on a backend of Keras."""
    print(f"the library on {backend}", flush=True)
    # Outside of the checkout, so that the installed package is the one that is tested.
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.call(
            [
                *(python, "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal"),
                *("-c", ROOT / "setup.cfg", "--rootdir", ROOT, "-p", "no:cacheprovider"),
                *(ROOT / "tests" / file for file in LEAN_TESTS),
            ],
            cwd=folder,
            env={**os.environ, "KERAS_BACKEND": backend, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        )


def pip(python: Path, *arguments: str) -> None:
    subprocess.check_call([python, "-m", "pip", "--quiet", *arguments])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
