"""Files that are there whole or not at all, after a power cut too."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Not on Windows.
    fcntl = None  # type: ignore[assignment]

_PREFIX = ".partial-"


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with a temporary path, then moves the result to `path` in one step.

    The contents are on the disk before they take the new name, and the name is on the disk before
    this returns, so that what the file replaces may be removed then. What killed processes have
    left in the folder is removed.

    Args:
        path: The file to write.
        write: Writes the file that it is given the path of.
    """
    temporary = temporary_path(path)
    remove_leftovers(path.parent)
    try:
        with _destructors_in_silence():
            write(temporary)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except (OSError, RuntimeError) as error:
        code = _errno(error)
        if code is None:
            raise
        # A full disk names no file, other errors the temporary one, and HDF5 its own history.
        raise OSError(code, os.strerror(code), str(path)) from None
    finally:
        with contextlib.suppress(OSError):  # It would take the place of the first error.
            temporary.unlink(missing_ok=True)


def reason(error: BaseException) -> str:
    """Returns the first line of an error, at most 200 characters; its `repr` if it is empty."""
    return (str(error).strip() or repr(error)).splitlines()[0][:200]


def _errno(error: Exception) -> int | None:
    """The system's number of an error; HDF5 may have it in its text alone."""
    found = re.search(r"errno = (\d+)", str(error))
    return int(found[1]) if found else getattr(error, "errno", None)


@contextlib.contextmanager
def _destructors_in_silence() -> Iterator[None]:
    """Within it HDF5's objects, which cannot be closed on a full disk, print no tracebacks."""
    hooks = sys.unraisablehook, sys.excepthook
    silent: Callable[..., None] = lambda *_: None  # noqa: E731
    sys.unraisablehook = sys.excepthook = silent
    try:
        yield
    finally:
        sys.unraisablehook, sys.excepthook = hooks


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes a JSON file whole or not at all; NaN and infinity are refused."""
    text = json.dumps(values, indent=1, allow_nan=False) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text))


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within it no other process is within it for the same folder; waits for those that are."""
    handle = None
    with contextlib.suppress(OSError):  # Windows opens no folders; some file systems do not lock.
        handle = os.open(folder, os.O_RDONLY)
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


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


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object that a JSON file holds.

    Raises:
        ValueError: if the file cannot be read, is not JSON, or holds something else; the message
            names it.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not valid JSON; it is damaged.") from None
    if not isinstance(values, dict):
        raise ValueError(
            f"{path} must hold a JSON object. Received: {type(values).__name__} "
            f"{json.dumps(values)[:60]}"
        )
    return values


def temporary_path(path: Path) -> Path:
    """Returns the path, beside the final one, that this process writes to first."""
    return path.with_name(f"{_PREFIX}{_host()}-{os.getpid()}-{path.name}")


def is_leftover(path: Path) -> bool:
    """Whether a path is a temporary one, of this or of another process."""
    return path.name.startswith(_PREFIX)


def remove_leftovers(folder: Path) -> None:
    """Removes what processes of this machine left in a folder when they were killed."""
    for path in folder.glob(f"{_PREFIX}{_host()}-*"):
        if _is_running(path.name.removeprefix(f"{_PREFIX}{_host()}-").partition("-")[0]):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.]", "_", platform.node()) or "local"


def _is_running(process: str) -> bool:
    if os.name != "posix" or not process.isascii() or not process.isdigit():
        return True  # On Windows the signal 0 is not harmless.
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
