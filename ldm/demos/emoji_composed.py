"""The composed emoji dataset: scenes with exact captions, one ImageFolder dataset for each kind of scene.

DEST/colour/, DEST/background/, DEST/count/, DEST/pair/
                      images/a-blue-apple.png and metadata.jsonl with file_name, text, captions, flip
DEST/objects/         the objects, from which any scene can be drawn again (`ldm.demos.emoji_objects`)
DEST/held_out.json    the combinations that occur in none of the images
DEST/dataset.json     versions, settings and counts
DEST/ATTRIBUTION.md   sources and licences

Train on it together with the plain emoji (`ldm.demos.emoji`), from which the model knows the objects.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.demos.emoji import (
    ATTRIBUTION,
    OnProgress,
    check_dest,
    packages_folder,
    slug_of,
)
from ldm.demos.emoji_objects import read_cutouts, write_objects
from ldm.demos.emoji_scenes import (
    KINDS,
    HeldOut,
    Kind,
    Scene,
    captions_of_scene,
    choose_held_out,
    training_scenes,
)
from ldm.demos.emoji_scenes_drawing import Artwork
from ldm.demos.emoji_source import IMAGES_PACKAGE, NAMES_PACKAGE, find_package
from ldm.errors import UserError
from ldm.io.folders import new_folder
from ldm.io.json_files import parse_json, read_json
from ldm.io.opening import read_text

OBJECTS_FOLDER, HELD_OUT_FILE = "objects", "held_out.json"


def prepare_composed_emoji(
    dest: Path,
    *,
    size_px: int = 64,
    num_pairs: int = 8_000,
    num_coloured_counts: int = 1_000,
    packages: Path | None = None,
    on_progress: OnProgress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Write the dataset to `dest` and return what `dataset.json` says.

    Args:
        dest: the folder to create; it must be absent or empty. It appears only when complete.
        size_px: side of the square images, a multiple of 4.
        num_pairs: images of two objects.
        num_coloured_counts: images of several objects in a colour; those in their own colours are all drawn.
        packages: folder with the two `.tgz` files; by default `npm pack` downloads them.
        on_progress: called with (what, done, total) now and then.

    Raises:
        UserError: a size is wrong, `dest` is in use, npm is missing, or a package is broken.
    """
    check_dest(dest, size_px)
    if size_px % 4:
        raise UserError(f"--size-px {size_px}", "choose a multiple of 4: scenes are laid out in quarters")
    with packages_folder(packages, on_progress) as folder, new_folder(dest, manifest=False) as work:
        images, names = find_package(folder, IMAGES_PACKAGE), find_package(folder, NAMES_PACKAGE)
        objects = write_objects(work / OBJECTS_FOLDER, images, names, on_progress)
        held_out = choose_held_out(objects)
        scenes = training_scenes(
            objects, held_out, num_pairs=num_pairs, num_coloured_counts=num_coloured_counts
        )
        artwork = Artwork(objects, read_cutouts(work / OBJECTS_FOLDER, objects), size_px)
        for kind, found in scenes.items():
            _write_folder(work / kind, kind, found, artwork, on_progress)
        summary = {
            "packages": {images.name: images.version, names.name: names.version},
            "size_px": size_px,
            "num_objects": len(objects),
            "num_objects_in_colours": sum(one.takes_colours for one in objects),
            "num_images": {kind: len(found) for kind, found in scenes.items()},
            "num_held_out": {kind: len(getattr(held_out, kind)) for kind in KINDS},
        }
        _write_json(work / HELD_OUT_FILE, held_out.to_dict())
        _write_json(work / "dataset.json", summary)
        attribution = ATTRIBUTION.format(images=images, names=names, size_px=size_px)
        (work / "ATTRIBUTION.md").write_text(attribution, encoding="utf-8")
    return summary


def read_held_out(folder: Path) -> HeldOut:
    """The held-out combinations of a composed dataset.

    Raises:
        UserError: the file is missing or damaged.
    """
    return HeldOut.from_dict(read_json(folder / HELD_OUT_FILE))


def read_training_scenes(folder: Path, kind: Kind) -> list[Scene]:
    """The scenes of one kind that a composed dataset contains.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = folder / kind / "metadata.jsonl"
    try:
        rows = [parse_json(line)["scene"] for line in read_text(path).splitlines()]
        return [Scene.from_dict(row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error})", "make the data again") from error


def _write_folder(
    folder: Path, kind: Kind, scenes: Sequence[Scene], artwork: Artwork, on_progress: OnProgress
) -> None:
    (folder / "images").mkdir(parents=True)
    plurals = {one.noun: one.plural for one in artwork.objects.values()}
    with (folder / "metadata.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        for done, scene in enumerate(scenes, start=1):
            row = _row_of(scene, plurals)
            artwork.draw(scene).save(folder / row["file_name"])
            file.write(json.dumps(row) + "\n")
            on_progress(f"drawing {kind}", done, len(scenes))


def _row_of(scene: Scene, plurals: Mapping[str, str]) -> dict[str, Any]:
    captions = captions_of_scene(scene, plurals)
    return {
        "file_name": f"images/{slug_of(captions[0])}.png",
        "text": captions[0],
        "captions": captions,
        "flip": False,
        "scene": scene.to_dict(),
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
