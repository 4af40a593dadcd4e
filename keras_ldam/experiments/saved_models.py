"""Files of models and weights: loaded only if they fill what their size accounts for."""

from __future__ import annotations

import contextlib
import math
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

MOST_UNPACKED = 10
"""How many times its size a file of weights may fill once it is read. Keras compresses nothing."""
SPARE_BYTES = 10**8
"""What a model may fill besides: the states of metrics, which are in no file."""
MOST_PARTS = 100_000
"""Layers, initializers and so on of a model; a layer with weights has some 5."""


class TooLargeError(ValueError):
    """A file would fill the memory; the message names it."""


def load_model(file: Path, **kwargs: Any) -> keras.Model:
    """Loads a model that declares no more weights than its file can hold.

    Args:
        file: A `.keras` or `.h5` file.
        **kwargs: Further arguments of `keras.models.load_model`.

    Raises:
        TooLargeError: for one that would fill the memory.
        Exception: whatever Keras, h5py and zipfile raise for one that cannot be read.
    """
    check_unpacked(file)
    with bounded(file):
        return keras.models.load_model(file, **kwargs)


@contextlib.contextmanager
def bounded(path: Path) -> Iterator[None]:
    """Within it variables are created only as far as a file, or the files of a folder, allow.

    A few bytes can declare a layer of any size, which Keras creates before it looks for its weights
    in the file. Only for the thread that loads.

    Raises:
        TooLargeError: before the variable that would go beyond.
    """
    files = [path] if path.is_file() else [part for part in path.rglob("*") if part.is_file()]
    limit = SPARE_BYTES + MOST_UNPACKED * sum(map(os.path.getsize, files))
    size, create = 0, keras.Variable.__init__

    def counted(self: Any, initializer: Any, shape: Any = None, *args: Any, **kwargs: Any) -> None:
        nonlocal size
        if shape is not None:
            size += 4 * math.prod(np.atleast_1d(shape).tolist())
        if size > limit:
            raise TooLargeError
        create(self, initializer, shape, *args, **kwargs)

    keras.Variable.__init__ = counted
    try:
        yield
    except Exception:  # Keras makes others of it.
        if size <= limit:
            raise
        raise TooLargeError(
            f"{path} declares weights of {size / 1e6:,.0f} MB, and may fill {MOST_UNPACKED} times "
            f"its own size and {SPARE_BYTES / 1e6:.0f} MB."
        ) from None
    finally:
        keras.Variable.__init__ = create


def check_unpacked(file: Path) -> None:
    """Refuses a file that would fill the memory: a few bytes can be compressed gigabytes.

    Args:
        file: A model (`.keras`) or weights (`.h5`); one that is neither passes, for whoever reads
            it to say so.

    Raises:
        TooLargeError: if the parts of the archive, or the tensors in it, are much larger than it,
            or it has too many layers.
    """
    limit = MOST_UNPACKED * file.stat().st_size if file.is_file() else 0
    with contextlib.suppress(OSError, zipfile.BadZipFile, EOFError, RuntimeError, KeyError):
        weights = [file]
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                size = sum(part.file_size for part in archive.infolist())
                if size <= limit:
                    names = [name for name in archive.namelist() if name.endswith(".h5")]
                    weights = [archive.read(name) for name in names]
                    parts = archive.read("config.json").count(b'"class_name"')
                    if parts > MOST_PARTS:
                        raise TooLargeError(
                            f"{file} has {parts:,} layers, initializers and other parts, and may "
                            f"have {MOST_PARTS:,}."
                        )
        else:
            size = 0
        if size <= limit:
            size = sum(map(_size_of_tensors, weights))
        if size > limit:
            raise TooLargeError(
                f"{file} would fill {size / 1e6:,.0f} MB, and it may fill {MOST_UNPACKED} times "
                "its own size: it was not written by Keras."
            )


def _size_of_tensors(weights: Path | bytes) -> int:
    import h5py

    sizes = []
    if isinstance(weights, bytes):
        # As an image that HDF5 reads by itself: through a Python file object it was seen to crash.
        access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
        access.set_fapl_core(backing_store=False)
        access.set_file_image(weights)
        opened = h5py.h5f.open(b"weights", h5py.h5f.ACC_RDONLY, access)
    else:
        opened = weights
    with h5py.File(opened, "r") as parts:
        parts.visititems(lambda _, part: sizes.append(getattr(part, "nbytes", 0)))
    return sum(sizes)
