"""Datasets that TensorFlow Datasets prepares."""

from __future__ import annotations

from typing import Any

from keras_ldam import extras, files


def builder(name: str, data_dir: str, *, archive: str = "") -> Any:
    """Returns TFDS' builder of a prepared dataset, and prepares it first if it can.

    Args:
        name: TFDS' name of the dataset.
        data_dir: TFDS folder. Empty for TFDS' own (`$TFDS_DATA_DIR` or `~/tensorflow_datasets`).
        archive: Folder of an original archive that is read in its place from `data_dir`, for
            messages.

    Raises:
        MissingExtraError: if TFDS is not installed.
        ValueError: if the dataset is not prepared and cannot be downloaded.
    """
    instead = f", where --data_dir does not hold {archive}," if archive else ""
    with extras.needed("experiments", by=f"dataset {name}{instead}"):
        import tensorflow_datasets as tfds

    source = tfds.builder(name, data_dir=data_dir or None)
    if not source.is_prepared():
        print(f"downloads dataset {name} to {source.data_path}", flush=True)
        try:
            source.download_and_prepare()
        except Exception as error:  # Network, host and disk each raise their own.
            raise ValueError(
                f"dataset {name} is unavailable: it is not prepared in {source.data_path}, and the "
                f"download failed ({files.reason(error)}). Connect to the network and run again, "
                "or copy a folder that TFDS has prepared elsewhere and name it with --data_dir."
            ) from None
    return source
