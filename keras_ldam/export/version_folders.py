"""Numbered folders of versions, as TensorFlow Serving looks for them: DIR/NAME/1, 2, …"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf


def choose(output: Path) -> Path:
    """The folder to write: the one named, or the next version; never one that is there.

    Args:
        output: `DIR/NAME` or `DIR/NAME/VERSION`.

    Raises:
        ValueError: for a version that is there or is not a whole number of at least 1, or a NAME
            that holds something else than versions.
    """
    named = output.name.isascii() and output.name.isdigit()
    parent = output.parent if named else output
    if not parent.name:
        raise ValueError(f"--output must be DIR/NAME or DIR/NAME/VERSION; received {output}.")
    if parent.exists() and not parent.is_dir():
        raise ValueError(f"{parent} exists and is not a folder; choose another output.")
    others = sorted(parent.iterdir()) if parent.exists() else []
    strange = [path.name for path in others if not _is_version(path) and path.name[0] != "."]
    if strange:
        raise ValueError(
            f"{parent} is not a folder of model versions, it holds {strange[0]!r}; choose another "
            "output."
        )
    if named:
        if output.name.startswith("0"):
            raise ValueError(f"a version must be a whole number of at least 1; received {output}.")
        if output.exists():
            raise ValueError(
                f"{output} exists, and a version is never overwritten; choose another."
            )
        return output
    taken = [int(path.name) for path in others if _is_version(path)]
    return parent / str(max(taken, default=0) + 1)


def write_whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Writes aside and moves in place, so that a server sees a version whole or not at all.

    Args:
        folder: What `choose` has given.
        write: Writes into the folder that it is given.

    Raises:
        ValueError: if that failed, or another program was faster. Nothing is left then.
    """
    aside = folder.parent / f".{folder.name}-{os.getpid()}"
    new = not folder.parent.exists()
    try:
        aside.mkdir(parents=True)
        write(aside)
        # Moving would replace an empty folder, but not one that has been filled meanwhile.
        aside.rename(folder)
    except (OSError, tf.errors.OpError) as error:  # A full disk is TensorFlow's own to tell.
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"{folder} could not be written: {reason}.") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if new and folder.parent.exists() and not any(folder.parent.iterdir()):
            folder.parent.rmdir()


def _is_version(path):
    return path.is_dir() and path.name.isascii() and path.name.isdigit()
