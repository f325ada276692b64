"""How often a watermark is still read after an image was changed, and what the detector finds without one."""

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldm.evaluation.metrics import exact_interval
from ldm.io.images import IMAGE_SUFFIXES, open_image
from ldm.pipeline.pipeline import Pipeline
from ldm.provenance.watermark import MIN_SIDE_PX, THRESHOLD, Payload, detect, embed, groups

TILE_PX = 384
"""Photographs are cut into tiles of this size, so that a few give many images."""
NUM_KEYS = 200
"""Keys that unmarked images are tried with."""

Change = Callable[[Image.Image], Image.Image]


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Saved as JPEG and opened again."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return open_image(buffer.getvalue())


def scaled(image: Image.Image, across: float, down: float | None = None) -> Image.Image:
    """Scaled by factors, bilinearly as screens do."""
    size = round(image.width * across), round(image.height * (across if down is None else down))
    return image.resize(size, Image.Resampling.BILINEAR)


def cut(image: Image.Image, share: float, where: float = 0.5) -> Image.Image:
    """A part of each side; `where` 0 keeps the left and the top, 1 the right and the bottom."""
    width, height = round(image.width * share), round(image.height * share)
    left, top = round((image.width - width) * where), round((image.height - height) * where)
    return image.crop((left, top, left + width, top + height))


def turned(image: Image.Image, degrees: float) -> Image.Image:
    """Turned about its centre, with black corners."""
    return image.rotate(degrees, Image.Resampling.BICUBIC)


CHANGES: Mapping[str, Change] = {
    "nothing": lambda image: image,
    "JPEG 90": lambda image: jpeg(image, 90),
    "JPEG 70": lambda image: jpeg(image, 70),
    "JPEG 50": lambda image: jpeg(image, 50),
    "JPEG 30": lambda image: jpeg(image, 30),
    "resized to 75 %": lambda image: scaled(image, 0.75),
    "resized to 50 %": lambda image: scaled(image, 0.5),
    "resized to 80 % x 110 %": lambda image: scaled(image, 0.8, 1.1),
    "screenshot: 83 %, JPEG 75": lambda image: jpeg(scaled(image, 0.83), 75),
    "screenshot: 60 %, JPEG 60": lambda image: jpeg(scaled(image, 0.6), 60),
    "lighter by 20 %": lambda image: image.point(lambda value: min(255, value * 1.2)),
    "cut to 95 %": lambda image: cut(image, 0.95),
    "cut to 90 %, off centre": lambda image: cut(image, 0.9, 0.3),
    "cut to 80 %": lambda image: cut(image, 0.8),
    "turned by 2 degrees": lambda image: turned(image, 2),
    "turned by 5 degrees, JPEG 75": lambda image: jpeg(turned(image, 5), 75),
}
"""What is done to an image before the detector sees it."""
SEARCHED = ("cut", "turned")


def made_anew(pipeline: Pipeline, strength: float) -> Change:
    """Image-to-image without a prompt: the autoencoder's round trip, with noise added and removed in between."""
    return lambda image: pipeline.generate("", image=image, strength=strength, seed=0, progress=False).images[
        0
    ]


def tiles(folder: Path, most: int) -> list[Image.Image]:
    """Tiles of the photographs in a folder that are large enough, `most` at most."""
    found: list[Image.Image] = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES):
        image = open_image(path)
        for top in range(0, image.height - MIN_SIDE_PX + 1, TILE_PX):
            for left in range(0, image.width - MIN_SIDE_PX + 1, TILE_PX):
                tile = image.crop(
                    (left, top, min(left + TILE_PX, image.width), min(top + TILE_PX, image.height))
                )
                if min(tile.size) >= MIN_SIDE_PX and np.asarray(tile).std() > 5:
                    found.append(tile)
    return found[:: math.ceil(len(found) / most)] if found else []


def payload_number(number: int) -> Payload:
    """Another payload for each image."""
    return Payload((number * 2654435761) % 2**14, (number * 40503 + 77) % 2**16)


def psnr_db(image: Image.Image, other: Image.Image) -> float:
    """The peak signal-to-noise ratio of two images, in dB."""
    off = np.asarray(image, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    return 10 * math.log10(255**2 / max(float(np.mean(off**2)), 1e-12))


def survival(images: Sequence[Image.Image], changes: Mapping[str, Change] = CHANGES) -> dict[str, Any]:
    """For each change, how many images are found to be marked and how many payloads are read, with exact intervals."""
    marked = [embed(image, payload_number(number)) for number, image in enumerate(images)]
    rows = []
    for name, change in changes.items():
        search = name.startswith(SEARCHED)
        seen = [detect(change(image), search=search) for image in marked]
        read = sum(one.payload == payload_number(number) for number, one in enumerate(seen))
        wrong = sum(one.payload not in (None, payload_number(number)) for number, one in enumerate(seen))
        rows.append({
            "change": name, "search": search, **_share("found", sum(one.found for one in seen), len(seen)),
            **_share("read", read, len(seen)), "num_wrong": wrong,
        })  # fmt: skip
    quality = [psnr_db(image, other) for image, other in zip(images, marked, strict=True)]
    return {"num_images": len(images), "psnr_db": _spread(quality), "rows": rows}


def null_distribution(images: Sequence[Image.Image]) -> dict[str, Any]:
    """The pilot's z of unmarked images: with the real key, and with keys that nobody uses."""
    own = np.array([detect(image, search=False).z for image in images])
    drawn = []
    for number in range(NUM_KEYS):
        drawn += [detect(image, search=False, key=b"key %d" % number).z for image in images[number % 4 :: 4]]
        groups.cache_clear()
    z = np.array(drawn)
    return {
        "num_draws": len(z), "mean": float(z.mean()), "std": float(z.std()), "largest": float(z.max()),
        "largest_own_key": float(own.max()), "threshold": THRESHOLD,
        "above_threshold": _share("found", int((z >= THRESHOLD).sum()), len(z)),
        "normal_tail": 0.5 * math.erfc(THRESHOLD / math.sqrt(2)),
    }  # fmt: skip


def false_alarms_of_search(images: Sequence[Image.Image]) -> dict[str, Any]:
    """How many unmarked images a search finds to be marked, and its largest z."""
    seen = [detect(image, search=True) for image in images]
    return {
        "largest": max(one.z for one in seen),
        **_share("found", sum(one.found for one in seen), len(seen)),
    }


def _share(name: str, count: int, number: int) -> dict[str, Any]:
    low, high = exact_interval(count, number)
    return {f"num_{name}": count, f"{name}_low": round(low, 4), f"{name}_high": round(high, 4)}


def _spread(values: Iterable[float]) -> dict[str, float]:
    found = np.array(list(values))
    return {"mean": round(float(found.mean()), 2), "least": round(float(found.min()), 2)}


def markdown(made: Mapping[str, Any]) -> str:
    """The table of docs/benchmarks/provenance.md."""
    lines = ["| change | found | ids read |", "|---|---|---|"]
    for row in made["survival"]["rows"]:
        cells = [
            f"{row[f'num_{k}']} ({row[f'{k}_low']:.0%} to {row[f'{k}_high']:.0%})" for k in ("found", "read")
        ]
        lines.append(f"| {row['change']}{' (--search)' if row['search'] else ''} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)
