"""The library on the other backends: the same tests once more in a process with each."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

TESTS = Path(__file__).parent
OF_TARGETS = (
    "test_unknown_answers_count_nowhere",
    "test_several_labels_are_re_weighted_in_fit_label_by_label_and_side_by_side",
    "test_a_batch_of_void_pixels_changes_nothing_in_fit",
)
"""The others compile too much for a second run; run the file by itself where targets change."""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_losses_layers_metrics_callbacks_and_diagnostics_do_the_same_on_another_backend(backend):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("this is the other backend already")
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    rooms = ("losses", "layers", "metrics", "callbacks", "evaluation")
    tests = [str(TESTS / f"test_{room}.py") for room in rooms]
    tests += [f"{TESTS / 'test_targets.py'}::{test}" for test in OF_TARGETS]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", *tests],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling takes longer than running
        },
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
