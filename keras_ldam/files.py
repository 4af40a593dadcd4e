"""Files that are there whole or not at all, after a power cut too."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with a temporary path, then moves the result to `path` in one step.

    The contents are on the disk before they take the new name, and the name is on the disk before
    this returns, so that what the file replaces may be removed then.

    Args:
        path: The file to write.
        write: Writes the file that it is given the path of.
    """
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        write(temporary)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: dict) -> None:
    """Writes a JSON file whole or not at all; NaN and infinity are refused."""
    text = json.dumps(values, indent=1, allow_nan=False) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text))


def sync(path: Path) -> None:
    """Returns once the contents of a file, or the entries of a folder, are on the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows does not open folders.
        return
    try:
        with contextlib.suppress(OSError):  # Some network file systems cannot sync a folder.
            os.fsync(handle)
    finally:
        os.close(handle)
