"""What the parts of the library need beyond Keras and NumPy, and how to install it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class MissingExtraError(ImportError):
    """A package is needed that a plain `pip install keras_ldam` does not bring."""


@contextlib.contextmanager
def needed(extra: str, by: str) -> Iterator[None]:
    """Within it, an import that fails says what to install.

    Args:
        extra: Name of the extra in setup.cfg that brings the package.
        by: What needs it, as the subject of a sentence.

    Raises:
        MissingExtraError: if a module that is not part of this library is missing.

    Example:

    ```python
    with extras.needed("report", by="a report"):
        import matplotlib
    ```
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "keras_ldam"):
            raise
        raise MissingExtraError(
            f"{by} needs {package}, which is not installed: pip install 'keras_ldam[{extra}]'.",
            name=error.name,
        ) from error
