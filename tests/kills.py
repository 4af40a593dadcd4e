"""Kills a run, its export and its report, and looks whether the same command makes it whole.

    python tests/kills.py             # before every file operation, and 100 times at random
    python tests/kills.py --every 20  # before every twentieth, and 5 times at random

Each time a process is killed, either before one of its file operations or after a random time, and
the same command is given again. The results, the history and every weight must be those of the
process that nobody killed, and nothing else may be left. TensorFlow runs step by step here, which
needs no compiling, so that a run takes a second.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


def train(folder: Path) -> int:
    from keras_ldam.experiments import progress

    progress.CHECKPOINT_SECONDS = 0.0  # A checkpoint after every epoch.
    # Two steps an epoch. A smoke run would not do: its results are no results.
    flags = ["--method=ldam_drw", "--epochs=3", "--start_epoch=1", "--batch_size=256"]
    flags += ["--noprogress", f"--run_dir={folder / 'run'}"]
    return program("train", *flags)


def export(folder: Path) -> int:
    import tensorflow as tf

    tf.config.run_functions_eagerly(False)
    output = folder / "exports" / "digits" / "1"
    if output.exists():  # It was whole before the kill; a version is never written twice.
        return 0
    return program("export", f"--run_dir={folder / 'run'}", f"--output={output}")


def report(folder: Path) -> int:
    from keras_ldam.report import canvas

    canvas.png = lambda draw, *_: b"a figure" if draw else None  # Drawing touches no file.
    places = [f"--results_dir={folder / 'results'}", f"--output_dir={folder / 'report'}"]
    return program("report", "--nodiagnose", *places, str(folder / "run"))


STAGES: dict[str, Callable[[Path], int]] = {"train": train, "export": export, "report": report}


def program(verb: str, *arguments: str) -> int:
    from keras_ldam.experiments import cli

    return cli.main(verb, arguments)


# ----------------------------------------------------------------------------- processes


def child(stage: str, folder: Path, *, kill_before: int = 0, counts: Path | None = None) -> int:
    """Forks a process that does a stage; returns its id.

    Args:
        stage: Name of the stage.
        folder: The folder with all that the stages write.
        kill_before: Number of the file operation before which it kills itself; 0: none.
        counts: A file, outside of the folder, for the number of file operations.
    """
    process = os.fork()
    if process:
        return process
    done = 0

    def operation() -> None:
        nonlocal done
        done += 1
        if done == kill_before:
            os.kill(os.getpid(), signal.SIGKILL)

    def heard(event: str, details: tuple) -> None:
        if event in EVENTS or (event == "open" and details[2] and details[2] & WRITES):
            with contextlib.suppress(TypeError, ValueError):  # An open file, or none.
                if Path(os.fsdecode(details[0])).is_relative_to(folder):
                    operation()

    with open(os.devnull, "wb") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
    sync = os.fsync
    os.fsync = lambda handle: (operation(), sync(handle))[1]  # Python says nothing of it.
    sys.addaudithook(heard)
    code = 70
    with contextlib.suppress(BaseException):
        import tensorflow as tf

        tf.config.run_functions_eagerly(True)
        code = STAGES[stage](folder)
        if counts is not None:
            counts.write_text(str(done))
    os._exit(code)


def ended(process: int) -> int:
    """The exit code of a process; below 0 for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


# ----------------------------------------------------------------------------- what is compared


def state(folder: Path) -> dict[str, object]:
    """What all stages so far have written, without times; files by their names."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = None
        if path.is_dir():
            continue
        if path.name == "model.keras":
            found[name] = weights(path)
        elif path.suffix == ".json":
            found[name] = without_times(json.loads(path.read_text()))
        elif path.suffix in (".csv", ".png") or ".data-" in path.name:
            found[name] = path.read_bytes()
        else:
            found[name] = path.stat().st_size > 0
    return found


def weights(file: Path) -> list[bytes]:
    import io
    import zipfile

    import h5py

    parts = {}
    with zipfile.ZipFile(file) as archive:
        contents = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(contents) as tree:
        tree.visititems(
            lambda name, part: (
                parts.update({name: part[()].tobytes()}) if isinstance(part, h5py.Dataset) else None
            )
        )
    return sorted(parts.items())


def without_times(values: object) -> object:
    if isinstance(values, dict):
        return {
            name: without_times(value)
            for name, value in values.items()
            if name not in ("seconds", "created")
        }
    return [without_times(value) for value in values] if isinstance(values, list) else values


# ----------------------------------------------------------------------------- the kills


def kills(
    folder: Path, *, every: int = 1, at_random: int = 100, stages: Sequence[str] = tuple(STAGES)
):
    """Yields a sentence for each kill after which something was wrong.

    Args:
        folder: An empty folder to work in.
        every: Kills before every so manyth file operation of each stage.
        at_random: Number of kills at random moments of all stages.
        stages: Names of the stages to kill.

    Yields:
        Sentences; at the end, as the only one that does not begin with "killed", how many kills
        there were.
    """
    whole, count = folder / "whole", folder / "count"
    whole.mkdir()
    number, draw = 0, random.Random(0)
    for stage in STAGES:
        before, copy = folder / f"before-{stage}", folder / "copy"
        shutil.copytree(whole, before)
        start = time.monotonic()
        code = ended(child(stage, whole, counts=count))
        seconds = time.monotonic() - start
        if code:
            raise RuntimeError(f"{stage} ends with {code} though nobody killed it")
        if stage not in stages:
            continue
        expected = state(whole)
        moments = [("operation", n) for n in range(1, int(count.read_text()) + 1, every)]
        share = -(-at_random // len(stages))
        moments += [("second", draw.uniform(0, seconds)) for _ in range(share)]
        for kind, moment in moments:
            shutil.copytree(before, copy)
            process = child(stage, copy, kill_before=moment if kind == "operation" else 0)
            if kind == "second":
                time.sleep(moment)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            killed = ended(process)
            code = ended(child(stage, copy))
            place = f"killed in {stage} at {kind} {moment:.4g} ({killed}), then"
            if code:
                yield f"{place} it ends with {code}"
            else:
                found = state(copy)
                for name in sorted({*found, *expected}):
                    if name not in found or name not in expected:
                        yield f"{place} {name} is {'lost' if name in expected else 'left over'}"
                    elif found[name] != expected[name]:
                        yield f"{place} {name} differs"
            number += 1
            shutil.rmtree(copy)
    yield f"{number} kills"


def prepare() -> None:
    """Imports what the processes need, before they are forked, and uses none of it.

    A TensorFlow that has been used has threads, which a forked process lacks.
    """
    import matplotlib.figure
    import sklearn.datasets

    import keras_ldam.report
    from keras_ldam.experiments import cli, exporting, tables, training  # noqa: F401

    assert matplotlib and sklearn and keras_ldam


def main(flags: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="before every so manyth operation")
    parser.add_argument("--at_random", type=int, default=None, help="kills at random moments")
    parser.add_argument("--stages", nargs="*", default=list(STAGES), help=", ".join(STAGES))
    arguments = parser.parse_args(flags)
    at_random = -(-100 // arguments.every) if arguments.at_random is None else arguments.at_random
    wrong = 0
    prepare()
    with tempfile.TemporaryDirectory() as folder:
        settings = {"every": arguments.every, "at_random": at_random, "stages": arguments.stages}
        for sentence in kills(Path(folder).resolve(), **settings):
            print(sentence, flush=True)
            wrong += sentence.startswith("killed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
