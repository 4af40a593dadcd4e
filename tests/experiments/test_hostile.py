"""A sample of what `tests/malformed.py` and `tests/kills.py` do as a whole."""

from types import SimpleNamespace

import kills
import malformed
import pytest
import replicas

from keras_ldam.experiments import training
from keras_ldam.experiments.run_folder import RunFolder


@pytest.mark.parametrize(
    "kind", [malformed.counts_files, malformed.flags, malformed.results_files, malformed.rows_files]
)
def test_malformed_input_gets_one_sentence_or_the_right_answer(kind, reported, tmp_path):
    valid = SimpleNamespace(folder=tmp_path, results=reported[1] / "digits.json")
    *wrong, number = malformed.problems(valid, every=11, kinds=(kind,))
    assert not wrong and int(number.split()[0]) > 8


def test_a_run_that_is_killed_goes_on_to_the_same_bits(tmp_path):
    told = tmp_path / "told.txt"
    flags = ["--every=66", "--at_random=2", "--stages=train"]
    process = replicas.start(kills.main, (flags,), told)
    assert replicas.ended(process, timeout=300) == 0, told.read_text()[-2000:]
    assert told.read_text().strip().endswith(" kills")


def test_a_kill_before_the_config_is_written_leaves_a_folder_that_trains(tmp_path, monkeypatch):
    import conftest

    from keras_ldam import files

    config, folder = conftest.small_config(method="erm"), RunFolder(tmp_path / "run")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(files, "write_json", killed)
        folder.create(config, {"counts": [1, 2]})
    folder.check(config)


def test_what_a_kill_after_the_results_has_left_is_removed(finished_run, tmp_path):
    import shutil

    import conftest

    folder = RunFolder(tmp_path / "run")
    shutil.copytree(finished_run, folder.path)
    (folder.checkpoints / "epoch-00003.weights.h5").write_bytes(b"x")
    training.train(conftest.small_config(method="ldam_drw"), folder.path)
    assert not list(folder.checkpoints.iterdir())
