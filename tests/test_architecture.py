"""The plan of the house, held by parsing the imports."""

import ast
import configparser
import doctest
import functools
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "keras_ldam"
FILES = sorted(PACKAGE.rglob("*.py"))

# Rooms of each wing by floor: a room imports from lower floors only.
LIBRARY = [
    {"cells", "cluster", "extras", "files", "keras_internals", "version"},
    {"counts", "hardware", "labels"},
    {"counting", "sharding"},
    {"advice", "layers", "losses", "metrics", "optimizers", "sampling", "schedules"},
    {"adjustment", "guards", "wrappers"},
    {"callbacks", "evaluation"},
    {"distribution", "export", "report", "serving"},
]
EXPERIMENTS = [
    {"config", "ngrams", "row_encoder", "saved_models", "text", "word_vectors"},
    {"recipes", "run_folder"},
    {"datasets"},
    {"feeding", "models"},
    {"place"},
    {"progress"},
    {"training"},
    {"exporting", "tables"},
    {"cli"},
]
EXCEPTIONS: set[tuple[str, str]] = set()
"""Imports that do not go down, each with its reason; five at most."""

FLOOR = {room: (0, floor) for floor, rooms in enumerate(LIBRARY) for room in rooms}
FLOOR |= {
    f"experiments.{room}": (1, floor) for floor, rooms in enumerate(EXPERIMENTS) for room in rooms
}


def room_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[0] == "experiments" and len(parts) > 1:
        return "__init__" if parts[1] == "__init__" else f"experiments.{parts[1]}"
    return parts[0]


def room_named(name):
    """The room that a dotted name lies in; None outside of the package, "" for the package."""
    parts = name.split(".")
    if parts[0] != "keras_ldam":
        return None
    if parts[1:2] == ["experiments"]:
        return "experiments" if len(parts) == 2 else f"experiments.{parts[2]}"
    return parts[1] if len(parts) > 1 else ""


def imports(path, *, top_level_only=False):
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            # `from keras_ldam import counts` names the room, not the package.
            rooms = [name for name in names if room_named(name) in FLOOR]
            yield from rooms if len(rooms) == len(names) else [node.module, *rooms]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    room = room_of(path)
    if room == "__init__":
        return
    assert room in FLOOR, f"{room} has no floor: add it to the plan"
    for name in imports(path):
        other = room_named(name)
        if other is None or other == room or (room, other) in EXCEPTIONS:
            continue
        # The package itself imports all of the library, and is above it.
        if other in ("", "experiments"):
            assert room.startswith("experiments."), f"{room} imports {name}"
            continue
        if other not in FLOOR:  # A name of the package, or of a room that is a folder.
            other = room_named(name.rpartition(".")[0])
        assert FLOOR[other] < FLOOR[room], f"{room} imports {other}"


def test_nothing_of_the_library_imports_the_experiments():
    for path in FILES:
        if "experiments" not in path.relative_to(PACKAGE).parts:
            assert "experiments" not in {part for name in imports(path) for part in name.split(".")}
            assert "keras_ldam.experiments" not in path.read_text(), path


def module_named(name):
    """The file of a module of the package; None for anything else."""
    path = PACKAGE.parent.joinpath(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return path if name.startswith("keras_ldam") and path.exists() else None


@functools.cache
def names_in(path):
    """What a module defines, assigns or imports, and its own modules."""
    found = {p.stem for p in path.parent.iterdir()} if path.name == "__init__.py" else set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.alias):
            found.add(getattr(node, "asname", None) or node.name)
    return found


@pytest.mark.parametrize("folder", ["benchmarks", "docs", "examples"])
def test_whatever_a_program_takes_from_the_package_exists(folder):
    for path in (PACKAGE.parent / folder).glob("*.py"):
        nodes, modules = list(ast.walk(ast.parse(path.read_text()))), {}
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and (module := module_named(node.module)):
                for alias in node.names:
                    assert alias.name in names_in(module), f"{path.name}, line {node.lineno}"
                    inner = module_named(f"{node.module}.{alias.name}")
                    modules |= {alias.asname or alias.name: inner} if inner else {}
        for node in nodes:
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                module = modules.get(node.value.id)
                assert not module or node.attr in names_in(module), f"{path.name}, {node.lineno}"


def test_there_are_few_exceptions():
    assert len(EXCEPTIONS) <= 5
    assert all(FLOOR[room] <= FLOOR[other] for room, other in EXCEPTIONS)


def test_an_installation_has_every_room():
    settings = configparser.ConfigParser()
    settings.read(PACKAGE.parent / "setup.cfg")
    listed = set(settings["options"]["packages"].split())
    found = {".".join(p.parent.relative_to(PACKAGE.parent).parts) for p in FILES}
    assert listed == found | {"keras_ldam.experiments.configs"}


def test_only_one_room_of_each_wing_imports_tensorflow_text():
    rooms = {room_of(path) for path in FILES if "tensorflow_text" in set(imports(path))}
    assert rooms <= {"experiments.text", "serving"}


def test_parts_do_not_import_a_backend_when_they_are_imported():
    # Rooms and files that are imported only by what needs TensorFlow.
    ends = {"experiments/text.py", "experiments/datasets/images.py"}
    rooms = {"distribution", "serving", "export"}
    for path in FILES:
        name = path.relative_to(PACKAGE).as_posix()
        if name in ends or (room_of(path) in rooms and name != "export/__init__.py"):
            continue
        loaded = {name.split(".")[0] for name in imports(path, top_level_only=True)}
        assert not loaded & {"tensorflow", "tensorflow_datasets", "tensorflow_text", "jax"}, path


FRESH = """
import json, os, sys
import keras
before, environment = set(sys.modules), dict(os.environ)
import keras_ldam
told = {
    "loaded": sorted({name.split(".")[0] for name in set(sys.modules) - before}),
    "rooms": sorted(name for name in sys.modules if name.startswith("keras_ldam.")),
    "environment": dict(os.environ) == environment,
}
from keras_ldam import *
told["backends"] = [name for name in ("tensorflow", "jax") if name in sys.modules]
told["public"] = sorted(set(keras_ldam.__all__) - set(dir(keras_ldam)))

def registered(*names):
    return [keras.saving.get_registered_object(f"keras_ldam>{name}") is not None for name in names]

told["parts"] = registered(
    "CosineDense", "RandomCropFlip", "FusedBatchNormalization", "MomentumSGD", "LDAM", "Focal",
    "CrossEntropy", "LDAMHinge", "LogitAdjusted", "VectorScaling", "ClassErrors",
    "logit_adjusted", "vector_scaling", "cross_entropy", "ldam", "ldam_hinge", "focal",
)
import keras_ldam.experiments
told["networks"] = registered(
    "BiLSTM", "PoolWords", "NGramEvidence", "PaddedShortcut", "TableFeatures", "soft_accuracy"
)
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def fresh_process():
    """What a new process on JAX tells of its imports."""
    pytest.importorskip("jax")
    done = subprocess.run(
        [sys.executable, "-c", FRESH],
        env={"KERAS_BACKEND": "jax", "PATH": "", "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_the_library_loads_numpy_and_keras_only(fresh_process):
    heavy = {"tensorflow_datasets", "tensorflow_text", "sklearn", "scipy", "matplotlib"}
    assert not heavy & set(fresh_process["loaded"])
    assert fresh_process["backends"] == ["jax"]
    assert not [name for name in fresh_process["rooms"] if "experiments" in name]


def test_importing_the_library_changes_no_environment_variable(fresh_process):
    assert fresh_process["environment"]


def test_every_public_name_exists_without_tensorflow(fresh_process):
    assert fresh_process["public"] == []


def test_importing_a_wing_is_enough_to_load_its_models(fresh_process):
    assert all(fresh_process["parts"]) and all(fresh_process["networks"])


def modules_with_examples():
    """Every module of the library that a docstring example stands in."""
    for path in FILES:
        if "experiments" not in path.parts and ">>>" in path.read_text():
            yield ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_the_examples_in_the_docstrings_run(name):
    module = importlib.import_module(name)
    result = doctest.testmod(
        module,
        optionflags=doctest.ELLIPSIS,
        extraglobs={"keras_ldam": importlib.import_module("keras_ldam")},
    )
    assert result.attempted > 0
    assert result.failed == 0


def test_no_environment_variable_is_set_outside_of_the_programs():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("setdefault", "putenv"):
                assert "environ" not in ast.unparse(node), path
