"""The captions of an emoji: its name, "a name", the name with tags."""

import re
from collections import Counter
from collections.abc import Iterable

from ldm.demos.emoji_choice import split_names, words_of
from ldm.demos.emoji_source import Emoji

NUM_TAGS = (2, 5)

_NO_ARTICLE_GROUPS = frozenset({"symbols", "flags", "component"})
# Last words of uncountable nouns, and of names that are not nouns.
_NO_ARTICLE_HEADS = split_names("""
bacon, badminton, bowling, bread, broccoli, butter, camping, clothes, cooking, coral, dizzy, dna, fire,
fish, fog, foggy, fondue, food, garlic, gesturing, ginger, green, handball, hockey, ice, jeans, lacrosse,
laughing, levitating, liquid, locked, luggage, mate, men, people, polish, polo, pong, popcorn, racing, rice,
root, sake, salt, soap, spaghetti, star-struck, struck, sunrise, sunset, sushi, tennis, thread, unlocked,
up, voltage, women, wood, yarn
""")
_NO_ARTICLE_NAMES = split_names("""
Mrs. Claus, Mx Claus, Santa Claus, Statue of Liberty, Tokyo tower, ZZZ, breast-feeding, call me hand,
chart decreasing, chart increasing, chart increasing with yen, construction, dashing away,
face savoring food, head shaking horizontally, head shaking vertically, index pointing up, kaaba, link,
milky way, mount fuji, rolling on the floor laughing
""")
# Tags that express the sender's mood rather than what the image shows, or that nobody wants in a caption.
_CHAT_TAGS = split_names("""
ass, bae, bet, bff, bro, bruh, fml, g2g, gtg, haha, hehe, hmm, idk, ily, jew, lmao, lol, lust, meh, oh, omg,
omw, oops, rofl, sexy, shh, smh, swag, tbt, thx, tmi, ttyl, ugh, whoa, woah, wow, xoxo, yolo
""")
_PLURALS = ("people ", "men ", "women ", "thumbs ", "palms ")
_HEAD_END = re.compile(r" (?:with|without|of|on|in|over|behind|and|showing|pointing) ")
_SINGULAR_IN_S = ("ss", "us", "is", "ros")


def count_tags(names: Iterable[Emoji]) -> Counter[str]:
    """How many emoji have each tag, without skin-tone variants, which repeat their base's tags."""
    return Counter(tag for emoji in names if not emoji.tone for tag in emoji.tags)


def captions_of(emoji: Emoji, tag_counts: Counter[str]) -> list[str]:
    """The captions of one image, the plain name first, without duplicates.

    The name; "a name" if that reads naturally; the name with two tags; the name with up to five tags. Tags that only
    repeat words of the name are left out, and so is chat ("lol", "143"). Tags that many emoji share come first, because
    they name the category.
    """
    name_words = words_of(emoji.name)
    new_tags = [tag for tag in emoji.tags if _is_word(tag) and not words_of(tag) <= name_words]
    tags = sorted(new_tags, key=lambda tag: (-tag_counts[tag], tag))
    captions = [emoji.name]
    if takes_article(emoji):
        captions.append(with_article(emoji.name))
    captions += [", ".join([emoji.name, *tags[:count]]) for count in NUM_TAGS]
    return list(dict.fromkeys(captions))


def _is_word(tag: str) -> bool:
    return tag not in _CHAT_TAGS and tag[:1].islower() and not any(char.isdigit() for char in tag)


def takes_article(emoji: Emoji) -> bool:
    """Whether "a name" reads naturally: the name is one countable thing, not a symbol, plural or substance."""
    name = emoji.name
    if emoji.group in _NO_ARTICLE_GROUPS or name in _NO_ARTICLE_NAMES:
        return False
    if ":" in name or name.startswith(_PLURALS):
        return False
    head = _HEAD_END.split(name)[0].split()[-1].lower()
    plural = head.endswith("s") and not head.endswith(_SINGULAR_IN_S)
    return not plural and head not in _NO_ARTICLE_HEADS


def with_article(name: str) -> str:
    """The name with "a" or "an", by sound: "an apple", "an hourglass", "a unicorn"."""
    lower = name.lower()
    if lower.startswith(("hour", "x-ray")):
        return f"an {name}"
    vowel = lower[0] in "aeiou" and not lower.startswith(("uni", "one", "ewe", "euro"))
    return f"{'an' if vowel else 'a'} {name}"
