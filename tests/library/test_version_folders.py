"""An export's folder of numbered versions: each is whole on the disk, and none is overwritten."""

import os
import signal
from pathlib import Path

import pytest
import tensorflow as tf
from made_exports import small_model

import keras_ldam
from keras_ldam import files
from keras_ldam.export import version_folders


def test_versions_are_numbered_and_never_overwritten(tmp_path):
    model = small_model()
    arguments = {"class_names": ["a", "b"], "scale": 30.0}
    first = keras_ldam.export_saved_model(model, tmp_path / "name", **arguments)
    before = {file: file.read_bytes() for file in first.rglob("*") if file.is_file()}
    assert first == tmp_path / "name" / "1"
    keras_ldam.export_saved_model(model, tmp_path / "name" / "7", **arguments)
    last = keras_ldam.export_saved_model(model, tmp_path / "name", **arguments)
    assert last.name == "8"
    with pytest.raises(ValueError, match="`output` exists, and a version is never overwritten"):
        keras_ldam.export_saved_model(model, first, **arguments)
    assert before == {file: file.read_bytes() for file in first.rglob("*") if file.is_file()}
    assert sorted(path.name for path in (tmp_path / "name").iterdir()) == ["1", "7", "8"]


def test_versions_are_whole_numbers_beside_nothing_but_hidden_files(tmp_path):
    choose = version_folders.choose
    for version in ("0", "07"):
        with pytest.raises(ValueError, match="A version must be a whole number of at least 1"):
            choose(tmp_path / "name" / version)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        choose(tmp_path / "file")
    (tmp_path / "name").mkdir()
    (tmp_path / "name" / ".DS_Store").write_text("")
    assert choose(tmp_path / "name") == tmp_path / "name" / "1"


def test_a_folder_that_is_not_one_of_versions_is_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds 'cat\.jpg'"):
        keras_ldam.export_saved_model(
            small_model(), tmp_path / "photos", class_names=["a", "b"], scale=1.0
        )


def test_a_failed_export_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(ValueError, match="no space left"):
        keras_ldam.export_saved_model(
            small_model(), tmp_path / "name", class_names=["a", "b"], scale=1.0
        )
    assert not (tmp_path / "name").exists()


@pytest.mark.parametrize(
    "error",
    [
        tf.errors.ResourceExhaustedError(None, None, "No space left on device\nmore"),
        OSError("No space left on device"),
    ],
)
def test_a_full_disk_gets_a_sentence_and_leaves_nothing(error, tmp_path, monkeypatch):
    def fail(served, folder, **options):
        (Path(folder) / "half").write_text("")
        raise error

    monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(ValueError, match=r"name/1 could not be written: No space left on device\."):
        keras_ldam.export_saved_model(
            small_model(), tmp_path / "exports" / "name", class_names=["a", "b"], scale=1.0
        )
    assert not list(tmp_path.iterdir())


def test_a_version_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    folder = tmp_path / "exports" / "name" / "1"
    synced = {False: set(), True: set()}
    monkeypatch.setattr(version_folders, "sync", lambda path: synced[folder.exists()].add(path))
    with version_folders.written_whole(folder) as aside:
        (aside / "variables").mkdir()
        (aside / "variables" / "index").write_text("")
    assert synced[False] == {aside, aside / "variables", aside / "variables" / "index"}
    assert synced[True] == {tmp_path / "exports" / "name", tmp_path / "exports", tmp_path}


def test_what_a_killed_export_left_is_removed_by_the_next(on_jax, tmp_path):
    program = f"""
import os, signal
from pathlib import Path
from keras_ldam.export import version_folders
with version_folders.written_whole(Path({str(tmp_path / "name" / "1")!r})) as aside:
    (aside / "half").write_text("")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert on_jax(program).returncode == -signal.SIGKILL
    (left,) = (tmp_path / "name").iterdir()
    assert (left / "half").exists()
    running = tmp_path / "name" / f".{os.getppid()}-2"
    running.mkdir()
    assert version_folders.choose(tmp_path / "name") == tmp_path / "name" / "1"
    with version_folders.written_whole(tmp_path / "name" / "1"):
        assert not left.exists()
    assert {path.name for path in (tmp_path / "name").iterdir()} == {"1", running.name}


def test_what_a_killed_export_of_the_same_process_number_left_is_removed(tmp_path):
    folder = tmp_path / "name" / "1"
    left = files.temporary_path(folder)
    left.mkdir(parents=True)
    (left / "half").write_text("")
    with version_folders.written_whole(folder) as aside:
        (aside / "whole").write_text("")
    assert [path.name for path in folder.iterdir()] == ["whole"]
    assert list(folder.parent.iterdir()) == [folder]
