"""Numbered folders of versions, as TensorFlow Serving expects them: `DIR/NAME/1`."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from keras_ldam.files import reason, remove_leftovers, sync, temporary_path


def choose(output: Path) -> Path:
    """Returns the folder to write: the version named, or the next one; never an existing one.

    Args:
        output: `DIR/NAME` or `DIR/NAME/VERSION`.

    Raises:
        ValueError: if the version exists or is not a whole number of at least 1, or NAME is not a
            folder of versions.
    """
    named = output.name.isascii() and output.name.isdigit()
    parent = output.parent if named else output
    if not parent.name:
        raise ValueError(f"`output` must be DIR/NAME or DIR/NAME/VERSION. Received: {output}")
    if parent.exists() and not parent.is_dir():
        raise ValueError(
            f"`output` must be in a folder, and {parent} is a file. Received: {output}"
        )
    others = sorted(parent.iterdir()) if parent.exists() else []
    strange = [path.name for path in others if not _is_version(path) and path.name[0] != "."]
    if strange:
        raise ValueError(
            f"`output` must be in a folder of model versions, and {parent} holds {strange[0]!r}. "
            f"Received: {output}"
        )
    if named:
        if output.name.startswith("0"):
            raise ValueError(f"A version must be a whole number of at least 1. Received: {output}")
        if output.exists():
            raise ValueError(
                f"`output` exists, and a version is never overwritten. Received: {output}"
            )
        return output
    taken = [int(path.name) for path in others if _is_version(path)]
    return parent / str(max(taken, default=0) + 1)


@contextlib.contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Yields a hidden folder to write into, then moves it in place, so that a server sees it whole.

    The contents are on the disk before the folder takes its name, and the name is on the disk at
    the end. What killed exports have left beside it is removed first.

    Args:
        folder: What `choose` has returned.

    Raises:
        ValueError: if writing failed, or another process has written the folder meanwhile; nothing
            is left then.
    """
    created = [path for path in folder.parents if not path.exists()]
    aside = temporary_path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder.parent)
        # In a container that is started again the killed process had the same number.
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        yield aside
        for path in [*aside.rglob("*"), aside]:
            sync(path)
        # A move replaces an empty folder, but not one that has been filled meanwhile.
        aside.rename(folder)
        for path in [folder.parent, *(path.parent for path in created)]:
            sync(path)
    except OSError as error:
        what = reason(error).rstrip(".")
        raise ValueError(f"{folder} could not be written: {what}.") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        for path in created:
            with contextlib.suppress(OSError):  # It is not empty: the export has succeeded.
                path.rmdir()


def _is_version(path: Path) -> bool:
    return path.is_dir() and path.name.isascii() and path.name.isdigit()
