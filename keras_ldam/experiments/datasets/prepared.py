"""Reading datasets that TensorFlow Datasets has prepared."""

from __future__ import annotations


def builder(name: str, data_dir: str):
    """Returns TFDS' builder of a dataset that is on disk, downloading it if that is possible.

    Args:
        name: TFDS' name of the dataset.
        data_dir: TFDS folder; empty for TFDS' own (`$TFDS_DATA_DIR` or `~/tensorflow_datasets`).

    Raises:
        ValueError: if the dataset is neither prepared nor downloadable.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError(
            f"dataset {name} is read through tensorflow_datasets and TensorFlow, which are not "
            f"here ({error}); install them, or for CIFAR name with --data_dir a folder that holds "
            "the original archive, unpacked."
        ) from None

    source = tfds.builder(name, data_dir=data_dir or None)
    if not source.is_prepared():
        print(f"dataset {name} is not prepared in {source.data_path}; downloads it", flush=True)
        try:
            source.download_and_prepare()
        except Exception as error:  # Whatever the network, the host or the disk came up with.
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise ValueError(
                f"dataset {name} is not prepared in {source.data_path} and could not be "
                f"downloaded ({reason[:200]}). Either connect to the network and run again, or "
                f"copy a folder that TFDS has prepared elsewhere and name it with --data_dir."
            ) from None
    return source
