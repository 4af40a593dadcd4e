"""What a plain installation lacks is named, with what to type."""

import importlib
import sys

import pytest

import keras_ldam
from keras_ldam import extras


def test_a_missing_package_is_named_with_what_to_install():
    with (
        pytest.raises(
            extras.MissingExtraError,
            match=r"^a report needs no_such_package, .*: pip install 'keras_ldam\[report\]'.$",
        ),
        extras.needed("report", by="a report"),
    ):
        import no_such_package.inner  # noqa: F401


def test_a_fault_of_this_library_is_not_taken_for_a_missing_package():
    with (
        pytest.raises(ModuleNotFoundError, match=r"keras_ldam.no_such_room") as caught,
        extras.needed("report", by="a report"),
    ):
        import keras_ldam.no_such_room  # noqa: F401
    assert not isinstance(caught.value, extras.MissingExtraError)


def test_what_is_installed_is_imported():
    with extras.needed("report", by="a report"):
        import json
    assert json.loads("1") == 1


def test_every_public_name_is_there():
    for name in keras_ldam.__all__:
        assert getattr(keras_ldam, name) is not None


def test_without_matplotlib_a_report_says_what_to_install(monkeypatch):
    parts = ("keras_ldam.report", "matplotlib.")
    for name in [name for name in sys.modules if name.startswith(parts)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(extras.MissingExtraError) as missing:
        importlib.import_module("keras_ldam.report")
    assert str(missing.value) == (
        "a report needs matplotlib, which is not installed: pip install 'keras_ldam[report]'."
    )
