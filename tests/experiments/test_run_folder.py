"""The run folder: whole files, one config a folder, and sentences for what is broken."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import zipfile

import h5py
import keras
import pytest
import replicas

from keras_ldam import files
from keras_ldam.experiments import saved_models
from keras_ldam.experiments.config import Config
from keras_ldam.experiments.run_folder import RunFolder
from keras_ldam.files import write_json, write_whole

DATA = {"name": "digits", "class_names": ["0", "1"], "counts": [3, 2], "vocabulary": None}


@pytest.fixture
def config():
    return Config().resolve()


def test_a_folder_belongs_to_one_config(tmp_path, config):
    folder = RunFolder(tmp_path / "run")
    folder.check(config)
    folder.create(config, DATA)
    folder.check(config)
    with pytest.raises(ValueError, match="with seed=0, not 1; choose another --run_dir"):
        folder.check(Config(seed=1).resolve())
    assert folder.read_config() == config


def test_where_the_data_lie_may_change(tmp_path, config):
    folder = RunFolder(tmp_path / "run")
    folder.create(config, DATA)
    moved = Config(data_dir="/elsewhere").resolve()
    folder.check(moved)
    folder.create(moved, DATA)
    assert folder.read_config().data_dir == "/elsewhere"


def test_a_run_stays_with_its_data(tmp_path, config):
    folder = RunFolder(tmp_path / "run")
    data = {**DATA, "class_names": ["cat", "dog"], "counts": [24, 8]}
    folder.check_data(data)
    folder.create(config, data)
    folder.check_data({**data, "new_in_this_version": 1})
    with pytest.raises(ValueError, match="a run on other data: its class_names differ"):
        folder.check_data({**data, "class_names": ["ant", "bee"]})


def test_a_folder_with_other_things_is_left_alone(tmp_path, config):
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(ValueError, match="not a run folder"):
        RunFolder(tmp_path).check(config)
    assert [file.name for file in tmp_path.iterdir()] == ["letters.txt"]


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})

    def break_off(aside):
        aside.write_text('{"a": ')
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, break_off)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_an_error_of_writing_is_told_though_the_file_cannot_be_removed(tmp_path):
    def break_off(aside):
        aside.mkdir()  # What `unlink` refuses.
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "results.json", break_off)


def test_history_rows_may_have_different_columns(tmp_path, config):
    folder = RunFolder(tmp_path / "run")
    folder.create(config, DATA)
    rows = [{"epoch": 0.0, "loss": 2.5}, {"epoch": 1.0, "loss": 2.0, "reweighted": 1.0}]
    folder.write_history(rows)
    assert folder.read_history() == rows


@pytest.mark.parametrize("present", [False, True])
def test_what_is_not_a_finished_run_gets_a_sentence(tmp_path, config, present):
    folder = RunFolder(tmp_path / "run")
    if present:
        folder.create(config, DATA)
    match = "the run has not ended" if present else "no such folder"
    with pytest.raises(ValueError, match=match):
        folder.read_results()


def test_damaged_files_get_a_sentence(tmp_path, config):
    folder = RunFolder(tmp_path / "run")
    folder.create(config, DATA)
    folder.config_file.write_text('{"seed": ')
    with pytest.raises(ValueError, match="not valid JSON"):
        folder.read_config()
    folder.config_file.write_text('{"sed": 1}')
    with pytest.raises(ValueError, match="unknown config field 'sed'; known: seed, …"):
        folder.read_config()
    for long in ({"new": 1}, {"seed": [1] * 1000}, {"method": "x" * 1000}):
        folder.config_file.write_text(json.dumps(long))
        with pytest.raises(ValueError) as raised:
            folder.read_config()
        assert len(str(raised.value)) < 600


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "mirrored"},
        {"strategy": "mirrored", "replicas": 2},
        {"worker_timeout": 99},
        {"jit": "off"},
        {"steps_per_execution": 4},
    ],
)
def test_where_and_how_it_is_computed_may_change(changes, tmp_path, config):
    folder = RunFolder(tmp_path / "run")
    folder.create(config, DATA)
    folder.check(Config(**changes).resolve())


def test_a_number_that_is_none_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "results.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "must hold a JSON object. Received: list"),
        ("null", "must hold a JSON object"),
        ("[" * 100_000, "not valid JSON"),
        ("{}", "lacks the key 'last'"),
    ],
)
def test_json_of_the_wrong_form_gets_a_sentence_with_file_and_key(
    content, message, tmp_path, config
):
    folder = RunFolder(tmp_path / "run")
    folder.create(config, DATA)
    folder.results_file.write_text(content)
    with pytest.raises(ValueError, match=f"results.json.*{message}"):
        folder.read_results()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("vocabulary", value) for value in ({}, "words", [1], ["a", "a"], ["\ud800"])),
        *(("columns", value) for value in ({}, [3], [{"name": "a"}], [{"kind": "number"}])),
        ("columns", [{"name": "a", "kind": "category", "categories": None}]),
        ("columns", 2 * [{"name": "a", "kind": "date"}]),
    ],
)
def test_data_of_the_wrong_form_get_a_sentence(name, value, tmp_path, config):
    folder = RunFolder(tmp_path / "run")
    folder.create(config, {**DATA, name: value})
    with pytest.raises(
        ValueError, match=f"data.json: `{name}` must be null or a list of different"
    ):
        folder.read_data()


@pytest.mark.parametrize("text", ["epoch,loss\n0,1.0,7\n", "epoch,loss\n0,low\n", "epoch\nnan\n"])
def test_a_history_that_is_none_gets_a_sentence(text, tmp_path, config):
    folder = RunFolder(tmp_path / "run")
    folder.create(config, DATA)
    folder.history_file.write_text(text)
    with pytest.raises(ValueError, match=r"history.csv is not the history of a run"):
        folder.read_history()


def test_a_lock_leaves_no_empty_folder(tmp_path):
    with RunFolder(tmp_path / "run").locked():
        pass
    assert not (tmp_path / "run").exists()


def test_leftovers_of_killed_processes_are_no_reason_to_refuse_a_folder(tmp_path, config):
    other = tmp_path / ".partial-another.host-1-data.json"
    for name in (f".partial-{files._host()}-4194305-config.json", other.name):
        (tmp_path / name).write_text("{")
    folder = RunFolder(tmp_path)
    folder.check(config)
    with folder.locked():
        # What a process of another machine is writing is left to it.
        assert list(tmp_path.iterdir()) == [other]


def test_the_next_file_that_is_written_removes_what_a_killed_process_left(tmp_path):
    with subprocess.Popen(["true"]) as process:
        process.wait()
    leftover = files.temporary_path(tmp_path / "errors.png")
    leftover = leftover.with_name(leftover.name.replace(str(os.getpid()), str(process.pid)))
    leftover.write_bytes(b"half")
    write_json(tmp_path / "digits.json", {})
    assert [file.name for file in tmp_path.iterdir()] == ["digits.json"]


def test_hidden_files_of_ones_own_are_no_leftovers(tmp_path):
    own = tmp_path / ".2024-backup"
    own.mkdir()
    files.remove_leftovers(tmp_path)
    assert own.exists() and not files.is_leftover(own)


def test_whoever_is_refused_leaves_the_folder_to_its_owner(tmp_path):
    pytest.importorskip("fcntl")
    path = tmp_path / "run"
    with RunFolder(path).locked():
        for _ in range(2):
            with pytest.raises(ValueError, match="another process"), RunFolder(path).locked():
                pass
            assert path.exists()
    assert not path.exists()


# ----------------------------------------------------------------------------- models and disks


@pytest.fixture
def model_file(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


def exchange(file, contents, compression, *, part="model.weights.h5"):
    """Puts other weights, or another part, into a saved model."""
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts[part] = contents
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, contents in parts.items():
            archive.writestr(name, contents)


def compressed_zeros():
    contents = io.BytesIO()
    with h5py.File(contents, "w") as file:  # Never written, so that they take no room at all.
        file.create_dataset("zeros", (1000, 1000_000), "float32", chunks=(1000, 1000))
    return contents.getvalue()


def test_a_model_that_would_fill_the_memory_is_refused(model_file, tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.load_model().count_params() == 15
    for weights, size in ((bytes(10**7), "10 MB"), (compressed_zeros(), "4,000 MB")):
        exchange(model_file, weights, zipfile.ZIP_DEFLATED)
        with pytest.raises(ValueError, match=rf"model.keras would fill {size}, and it may fill 10"):
            folder.load_model()
    (tmp_path / "epoch-00001.weights.h5").write_bytes(compressed_zeros())
    with pytest.raises(ValueError, match=r"weights.h5 would fill 4,000 MB"):
        saved_models.check_unpacked(tmp_path / "epoch-00001.weights.h5")


@pytest.mark.parametrize(
    ("layers", "megabytes"),
    [
        ([keras.layers.Dense(10**9)], "16,000"),
        ([keras.layers.Embedding(10**9, 10**4)], "40,000,000"),
        ([keras.layers.Dense(450) for _ in range(5)], "2"),  # Each of them below the limit.
    ],
)
def test_layers_that_a_file_cannot_hold_are_refused_before_they_are_made(
    layers, megabytes, model_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(saved_models, "SPARE_BYTES", 10**6)
    with zipfile.ZipFile(model_file) as archive:
        config = json.loads(archive.read("config.json"))
    config["config"]["layers"][1:] = map(keras.saving.serialize_keras_object, layers)
    exchange(model_file, json.dumps(config), zipfile.ZIP_STORED, part="config.json")
    create = keras.Variable.__init__
    with pytest.raises(ValueError, match=f"model.keras declares weights of {megabytes} MB, and"):
        RunFolder(tmp_path).load_model()
    assert keras.Variable.__init__ is create


def test_a_model_of_very_many_layers_is_refused_before_it_is_made(model_file, tmp_path):
    layer = '{"module": "keras.layers", "class_name": "ReLU", "config": {}},'
    exchange(model_file, layer * 100_001, zipfile.ZIP_STORED, part="config.json")
    with pytest.raises(ValueError, match=r"model.keras has 100,001 layers, .*may have 100,000"):
        RunFolder(tmp_path).load_model()


def test_states_of_metrics_that_no_file_holds_have_room(model_file):
    model = keras.models.load_model(model_file)
    model.compile("sgd", "mse", metrics=[keras.metrics.MeanIoU(1000)])
    model.save(model_file)
    assert saved_models.load_model(model_file).count_params() == 15


@pytest.mark.parametrize(
    ("contents", "message"),
    [(b"", "it is empty"), (b"PK junk", "it is not a .keras file"), (None, "cannot be read")],
)
def test_what_is_no_model_is_called_so(model_file, contents, message, tmp_path):
    contents = model_file.read_bytes()[:-30] if contents is None else contents
    model_file.write_bytes(contents)
    with pytest.raises(ValueError, match=f"model.keras .*{message}"):
        RunFolder(tmp_path).load_model()


FULL_DISK = """
import errno, os, resource, signal
from pathlib import Path
import keras
from keras_ldam.files import write_whole

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = keras.Sequential([keras.Input((40,)), keras.layers.Dense(30)])
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
for name, write in {
    "results.json": lambda path: path.write_text("x" * 9000),
    "epoch-00000.weights.h5": model.save_weights,  # HDF5 tells a long story.
    "model.keras": model.save,
}.items():
    try:
        write_whole(folder / name, write)
    except OSError as error:
        told = (error.strerror, error.filename)
    assert told == (os.strerror(errno.EFBIG), str(folder / name)), told
assert not list(folder.iterdir())
os._exit(0)
"""
"""In a process of its own: HDF5 does not recover from a file that it could not write."""


def test_a_file_that_the_disk_cannot_hold_is_named_in_one_sentence(tmp_path):
    pytest.importorskip("resource")
    (tmp_path / "folder").mkdir()
    told = tmp_path / "told.txt"
    process = replicas.start(exec, (FULL_DISK, {"folder": tmp_path / "folder"}), told)
    assert replicas.ended(process) == 0, told.read_text()[-2000:]


# ----------------------------------------------------------------------------- a power cut


@pytest.fixture
def disk(tmp_path):
    """A file with an ext4 file system, and the folder that it is mounted at."""
    image, place = tmp_path / "disk", tmp_path / "mounted"
    image.write_bytes(bytes(16 * 2**20))
    try:
        subprocess.run(["mkfs.ext4", "-q", image], check=True, capture_output=True)
        with mounted(image, place):
            yield image, place
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no ext4 file system can be mounted here: {error}")


@contextlib.contextmanager
def mounted(image, place):
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", image, place], check=True, capture_output=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_power_cut_leaves_whole_files(disk, config, tmp_path):
    image, place = disk
    folder = RunFolder(place / "run")
    folder.create(config, DATA)
    for epoch in range(3):
        folder.write_history([{"epoch": e, "loss": 1.0} for e in range(epoch + 1)])
        weights = folder.checkpoints / f"epoch-{epoch:05d}.weights.h5"
        write_whole(weights, lambda path, epoch=epoch: path.write_bytes(bytes([epoch]) * 10**5))
        for old in folder.checkpoints.iterdir():
            if old != weights:
                old.unlink()
        # What has reached the disk so far: a copy of it is what the machine finds afterwards.
        copy = tmp_path / f"disk-{epoch}"
        shutil.copyfile(image, copy)
        with mounted(copy, tmp_path / f"after-{epoch}") as after:
            found = RunFolder(after / "run")
            assert found.read_config() == config and found.read_data() == DATA
            assert [row["epoch"] for row in found.read_history()] == list(range(epoch + 1))
            assert (found.checkpoints / weights.name).read_bytes() == bytes([epoch]) * 10**5
