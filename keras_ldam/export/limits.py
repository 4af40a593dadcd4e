"""What a served graph accepts; beyond it the graph refuses the input, whoever asks."""

from __future__ import annotations

MAX_TEXT_BYTES = 100_000
"""Length of a text; the longest review of IMDB has 14,000 bytes."""

MAX_IMAGE_PIXELS = 50_000_000
"""Height times width of an encoded image. A file of a few bytes can claim any size."""

MAX_JPEG_SCANS = 20
"""Scans of a progressive JPEG of `MAX_IMAGE_PIXELS`, each of which takes time for every pixel; a
smaller image may have more. Programs write about 10."""

MAX_PNG_TEXTS = 16
"""Compressed texts and profiles of a PNG, each of which may fill 8 MB."""

MAX_GIF_BLOCKS = 30_000
"""Blocks of a GIF, of at most 255 bytes each: its size is known only after a walk over them."""
