"""Small image datasets for tests, made on the spot: real files in the layouts that users have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image


def picture(label: int, number: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Makes a picture with the colors and stripes of its class, and its own noise.

    Args:
        label: Its class.
        number: Its number within the class.
        size: Width and height in pixels.
    """
    generator = np.random.default_rng([label, number])
    width, height = size
    color = np.random.default_rng(label).uniform(40, 215, 3)
    stripes = 25 * np.sin(np.arange(width) * (0.3 + 0.2 * (label % 4)))[None, :, None]
    pixels = color + stripes + generator.normal(0, 8, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_folder(root: Path, counts: list[int], *, names: list[str] | None = None) -> list[str]:
    """Writes `ROOT/CLASS/IMAGE.jpg`; returns the names of the classes."""
    names = names or [f"class_{label}" for label in range(len(counts))]
    for label, (name, count) in enumerate(zip(names, counts, strict=True)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            picture(label, number).save(root / name / f"{number:04d}.jpg", quality=95)
    return names


def write_release(
    root: Path, counts: list[int], *, validation: int = 3, write_images: bool = True
) -> None:
    """Writes a small release of iNaturalist 2018: annotations and images.

    Args:
        root: The folder, which is created.
        counts: Training images of each category.
        validation: Validation images of each category.
        write_images: Whether to write the images too.
    """
    groups = ("Aves", "Plantae", "Insecta")
    categories = [
        {"id": label, "name": f"species {label}", "supercategory": groups[label % len(groups)]}
        for label in range(len(counts))
    ]
    next_id = 0
    for file, per_class in (
        ("train2018.json", counts),
        ("val2018.json", [validation] * len(counts)),
    ):
        images, annotations = [], []
        for category, count in zip(categories, per_class, strict=True):
            label = category["id"]
            folder = Path("train_val2018") / category["supercategory"] / str(label)
            if write_images:
                (root / folder).mkdir(parents=True, exist_ok=True)
            for _ in range(count):
                name = folder / f"{next_id:032x}.jpg"
                images.append(
                    {"id": next_id, "file_name": str(name), "width": 48, "height": 40,
                     "license": 3, "rights_holder": "nobody"}
                )  # fmt: skip
                annotations.append({"id": next_id, "image_id": next_id, "category_id": label})
                if write_images:
                    picture(label, next_id).save(root / name, quality=95)
                next_id += 1
        root.mkdir(parents=True, exist_ok=True)
        # Images and annotations match by id, not by order.
        annotations.reverse()
        content = {
            "info": {"year": 2018},
            "licenses": [],
            "categories": categories,
            "images": images,
            "annotations": annotations,
        }
        (root / file).write_text(json.dumps(content))
