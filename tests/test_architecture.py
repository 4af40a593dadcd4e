"""The plan of the house, held by parsing the imports."""

import ast
import configparser
import doctest
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "keras_ldam"

# Rooms by floor; a room imports from lower floors only.
FLOORS = [
    {"counts", "hardware", "labels"},
    {
        "advice", "augmentation", "calibration", "callbacks", "config", "evaluation", "layers",
        "losses", "metrics", "normalization", "optimizers", "results", "schedules", "text",
        "word_vectors",
    },
    {"datasets", "models"},
    {"cli", "distribution", "export", "prediction", "report", "serving", "training"},
]  # fmt: skip
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Parts that lean on another part, each with its reason.
SAME_FLOOR = {
    ("callbacks", "losses"),  # DRW sets a loss's variable.
    ("callbacks", "layers"),  # DRW refuses a head that gives probabilities.
    ("evaluation", "calibration"),  # Trust in the scores is a part of what it tells.
    ("evaluation", "layers"),  # It recognises the head whose scores are cosines.
    ("results", "config"),  # A run folder belongs to a config.
    ("models", "datasets"),  # A network is built for a Data record.
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path, *, top_level_only=False):
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    room = room_of(path)
    if room == "__init__":
        return
    assert room in FLOOR, f"{room} has no floor: add it to the plan"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "keras_ldam" or len(parts) < 2 or parts[1] not in FLOOR:
            continue
        other = parts[1]
        if other == room or (room, other) in SAME_FLOOR:
            continue
        same_wiring = FLOOR[room] == FLOOR[other] == 3 and room in (
            "cli", "export", "report", "serving", "training",
        )  # fmt: skip
        assert FLOOR[other] < FLOOR[room] or same_wiring, f"{room} imports {other}"


def test_an_installation_has_every_room():
    settings = configparser.ConfigParser()
    settings.read(PACKAGE.parent / "setup.cfg")
    listed = set(settings["options"]["packages"].split())
    found = {".".join(p.parent.relative_to(PACKAGE.parent).parts) for p in FILES}
    assert listed == found | {"keras_ldam.configs"}


def test_only_one_room_imports_tensorflow_text():
    rooms = {room_of(path) for path in FILES if "tensorflow_text" in set(imports(path))}
    assert rooms <= {"text", "prediction"}


def test_parts_do_not_import_tensorflow_when_they_are_imported():
    # These two are imported only by what needs them.
    ends = {"text.py", "datasets/images.py"}
    for path in FILES:
        if str(path.relative_to(PACKAGE)) in ends or FLOOR.get(room_of(path), 0) == 3:
            continue
        loaded = {name.split(".")[0] for name in imports(path, top_level_only=True)}
        assert not loaded & {"tensorflow", "tensorflow_datasets", "tensorflow_text", "jax"}, path


FRESH = """
import json, sys
import keras
before = set(sys.modules)
import keras_ldam
loaded = {name.split(".")[0] for name in set(sys.modules) - before}
registered = {
    name: keras.saving.get_registered_object(f"keras_ldam>{name}") is not None
    for name in (
        "BiLSTM", "PoolWords", "PaddedShortcut", "RandomCropFlip", "FusedBatchNormalization",
        "MomentumSGD", "cross_entropy", "ldam", "ldam_hinge", "focal",
    )
}
from keras_ldam import *
backends = [name for name in ("tensorflow", "jax") if name in sys.modules]
print(json.dumps({"loaded": sorted(loaded), "backends": backends, "registered": registered}))
"""


@pytest.fixture(scope="module")
def fresh_process():
    """What a new process on JAX tells of its imports."""
    done = subprocess.run(
        [sys.executable, "-c", FRESH],
        env={"KERAS_BACKEND": "jax", "PATH": "", "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_the_library_loads_numpy_and_keras_only(fresh_process):
    heavy = {"tensorflow_datasets", "tensorflow_text", "absl", "sklearn", "matplotlib"}
    assert not heavy & set(fresh_process["loaded"])
    assert fresh_process["backends"] == ["jax"]


def test_a_process_that_only_loads_a_model_knows_the_layers_of_every_network(fresh_process):
    assert len(fresh_process["registered"]) == 10
    assert all(fresh_process["registered"].values()), fresh_process["registered"]


@pytest.mark.parametrize(
    "room",
    [
        "advice", "augmentation", "calibration", "counts", "evaluation", "layers", "losses",
        "metrics", "normalization", "optimizers", "report.theory", "schedules",
    ],
)  # fmt: skip
def test_the_examples_in_the_docstrings_run(room):
    module = importlib.import_module(f"keras_ldam.{room}")
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0
