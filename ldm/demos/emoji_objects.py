"""The objects that composed emoji scenes are made of: single countable things with a one-word name.

They are those that have one clear colour, and some others: a small model learns about 160 at half the size in a few
hours on a CPU.

A folder of objects, written by `write_objects` and read by `read_objects`, is all that drawing needs:

FOLDER/rocket.png     RGBA, 256 px, as in the package
FOLDER/objects.json   for each object its noun, plural and emoji, and its main colour
"""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm.demos.emoji_captions import takes_article
from ldm.demos.emoji_choice import is_clear, split_names
from ldm.demos.emoji_colours import COLOURS, MainColour, main_colour
from ldm.demos.emoji_source import Emoji, Package, image_stems, match_images, read_images, read_names
from ldm.errors import UserError
from ldm.io.json_files import read_json

OBJECTS_FILE = "objects.json"

# One word, but not one thing: a pattern of many parts, a place, or weather that fills the image.
_NOT_OBJECTS = split_names("""
fireworks, sparkles, collision, tornado, rainbow, fire, camping, construction, factory, stadium, castle, hospital,
volcano, spaghetti, tennis, bowling, sushi, popcorn, taco, skis
""")
# Objects in several colours, or in none, that are easy to tell apart at half the size.
_SEVERAL_COLOURS = split_names("""
horse, cow, wolf, elephant, rabbit, koala, panda, penguin, duck, owl, parrot, frog, turtle, butterfly, honeybee, spider,
rose, sunflower, strawberry, pineapple, tomato, carrot, watermelon, hamburger, pizza, house, bus, taxi, automobile,
bicycle, sailboat, rocket, helicopter, cloud, snowman, guitar, drum, camera, candle, hammer, axe, television
""")
_PLURALS = {
    "fish": "fish",
    "deer": "deer",
    "moose": "moose",
    "bison": "bison",
    "shrimp": "shrimp",
    "squid": "squid",
    "blowfish": "blowfish",
    "wolf": "wolves",
    "scarf": "scarves",
    "snowman": "snowmen",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "cactus": "cacti",
}


@dataclass(frozen=True)
class EmojiObject:
    """One thing to draw.

    Attributes:
        noun: its name in captions, one word, unique.
        plural: of the noun.
        name: the emoji's name.
        main: its main colour; None if it has none.
    """

    noun: str
    plural: str
    name: str
    main: MainColour | None

    @property
    def takes_colours(self) -> bool:
        """Whether it has one clear colour, so that recolouring it gives "a blue apple"."""
        return self.main is not None and self.main.is_clear


def noun_of(emoji: Emoji) -> str | None:
    """The emoji's name without its colour, if that is one word for one countable thing: "red apple" -> "apple"."""
    words = emoji.name.split()
    noun = words[-1]
    if words[:-1] and words[:-1] not in ([colour] for colour in COLOURS):
        return None
    if emoji.subgroup.startswith("face") or noun in _NOT_OBJECTS or not takes_article(emoji):
        return None
    return noun if noun.replace("-", "").isalpha() and noun.isascii() and noun.islower() else None


def plural_of(noun: str) -> str:
    """The plural of a noun that `noun_of` returns."""
    if noun in _PLURALS:
        return _PLURALS[noun]
    if noun.endswith(("s", "x", "ch", "sh", "z")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def choose_objects(names: Iterable[Emoji]) -> dict[str, Emoji]:
    """noun -> emoji in the order of the emoji; of several with the same noun the first ("red apple")."""
    chosen: dict[str, Emoji] = {}
    for emoji in names:
        noun = None if emoji.tone or not is_clear(emoji) else noun_of(emoji)
        if noun is not None:
            chosen.setdefault(noun, emoji)
    return chosen


def write_objects(
    folder: Path, images: Package, names: Package, on_progress: Callable[[str, int, int], None]
) -> list[EmojiObject]:
    """Write the folder of objects from the two packages; returns them in the order of the emoji.

    Left out are objects that have no clear colour and are not listed.

    Raises:
        UserError: a package is broken, or no object is found in both.
    """
    emoji = read_names(names)
    chosen = choose_objects(emoji)
    noun_by_name = {e.name: noun for noun, e in chosen.items()}
    matched, _ = match_images(image_stems(images), [e for e in emoji if not e.tone])
    stems = {stem: noun_by_name[e.name] for stem, e in matched.items() if e.name in noun_by_name}
    if not stems:
        raise UserError("no image matches the names", "check that the two packages are the expected ones")
    folder.mkdir(parents=True)
    found: dict[str, EmojiObject] = {}
    for done, (stem, encoded) in enumerate(read_images(images, stems.keys()), start=1):
        noun = stems[stem]
        with Image.open(io.BytesIO(encoded)) as image:
            rgba = image.convert("RGBA")
        one = EmojiObject(noun, plural_of(noun), chosen[noun].name, main_colour(np.asarray(rgba)))
        if one.takes_colours or noun in _SEVERAL_COLOURS:
            rgba.save(folder / f"{noun}.png")
            found[noun] = one
        on_progress("reading objects", done, len(stems))
    objects = [found[noun] for noun in chosen if noun in found]
    text = json.dumps([asdict(one) for one in objects], indent=1) + "\n"
    (folder / OBJECTS_FILE).write_text(text, encoding="utf-8")
    return objects


def read_objects(folder: Path) -> list[EmojiObject]:
    """The objects of a folder.

    Raises:
        UserError: its list is missing or damaged.
    """
    path = folder / OBJECTS_FILE
    rows = read_json(path)
    try:
        return [
            EmojiObject(row["noun"], row["plural"], row["name"], row["main"] and MainColour(**row["main"]))
            for row in rows
        ]
    except (TypeError, KeyError) as error:
        raise UserError(f"{path} lacks {error}", "make the data again") from error


def read_cutouts(folder: Path, objects: Sequence[EmojiObject]) -> dict[str, NDArray[np.uint8]]:
    """noun -> the object's pixels [H, W, 4].

    Raises:
        UserError: an image is missing or damaged.
    """
    cutouts = {}
    for one in objects:
        path = folder / f"{one.noun}.png"
        try:
            with Image.open(path) as image:
                cutouts[one.noun] = np.asarray(image.convert("RGBA"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error})", "make the data again") from error
    return cutouts
