"""Which emoji belong to the subset "clear", and which images may be mirrored.

The subset exists because a small model trained on a CPU needs a few hundred images, each seen about a hundred times,
and because its output must be recognisable at 64 px. So it contains animals, food, plants, vehicles, objects and about
fifty faces that are easy to tell apart. It leaves out people, body parts and hands (small differences, many variants),
flags, keycaps and symbols (writing, not objects), and all but one of each family of near duplicates (clock faces, moon
phases, mailboxes, buses seen from the front ...), because two captions for almost the same image teach neither.
"""

import re

from ldm.demos.emoji_source import Emoji


def split_names(text: str) -> frozenset[str]:
    """The names of a comma-separated list that may run over several lines."""
    return frozenset(name.strip() for name in text.replace("\n", " ").split(",") if name.strip())


CLEAR_SUBGROUPS = split_names("""
animal-mammal, animal-bird, animal-amphibian, animal-reptile, animal-marine, animal-bug, plant-flower,
plant-other, food-fruit, food-vegetable, food-prepared, food-asian, food-sweet, drink, dishware,
place-geographic, place-building, place-other, transport-ground, transport-water, transport-air, hotel,
time, sky-weather, event, award-medal, sport, game, arts-crafts, clothing, sound, music, musical-instrument,
phone, computer, light-video, book-paper, money, mail, writing, office, lock, tool, science, medical,
household
""")

# Single emoji from other subgroups: faces and hearts come in many nearly identical kinds.
CLEAR_NAMED = split_names("""
grinning face, grinning face with big eyes, beaming face with smiling eyes, grinning face with sweat,
face with tears of joy, slightly smiling face, upside-down face, melting face, winking face,
smiling face with smiling eyes, smiling face with halo, smiling face with hearts,
smiling face with heart-eyes, star-struck, face blowing a kiss, face savoring food, zany face,
money-mouth face, face with hand over mouth, shushing face, thinking face, saluting face, zipper-mouth face,
neutral face, face with rolling eyes, grimacing face, lying face, sleeping face, drooling face,
face with medical mask, face with thermometer, face with head-bandage, nauseated face, face vomiting,
hot face, cold face, exploding head, cowboy hat face, partying face, disguised face,
smiling face with sunglasses, nerd face, face with monocle, frowning face, astonished face, flushed face,
pleading face, crying face, loudly crying face, face screaming in fear, yawning face, enraged face,
smiling face with horns, skull, pile of poo, clown face, ogre, goblin, ghost, alien, alien monster, robot,
grinning cat, smiling cat with heart-eyes, crying cat, see-no-evil monkey, hear-no-evil monkey,
speak-no-evil monkey, red heart, blue heart, green heart, yellow heart, broken heart, heart on fire,
collision, globe showing Americas, compass, church, mosque, coffin, headstone, moai, cigarette
""")

# Hard to tell from another emoji in the subset at 64 px, or another one of a kind that is already included.
_NEAR_DUPLICATES = split_names("""
guide dog, service dog, black cat, ox, water buffalo, boar, ewe, two-hump camel, mouse, tiger,
hatching chick, front-facing baby chick, black bird, goose, spouting whale, beetle, ant, cricket, mosquito,
fly, worm, white flower, wilted flower, hyacinth, blossom, seedling, herb, shamrock, fallen leaf,
leaf fluttering in wind, empty nest, melon, mango, peanuts, beans, flatbread, stuffed flatbread, burrito,
tamale, falafel, shallow pan of food, pot of food, bowl with spoon, rice cracker, cooked rice, curry rice,
oden, fish cake with swirl, moon cake, dango, bento box, takeout box, steaming bowl, shaved ice, shortcake,
custard, clinking beer mugs, clinking glasses, pouring liquid, mate, sake, teacup without handle,
beverage box, fork and knife with plate, amphora, jar, mountain, beach with umbrella, national park, desert,
houses, house with garden, derelict house, love hotel, Japanese post office, hotel, bank, department store,
convenience store, office building, post office, school, wedding, night with stars, cityscape,
sunrise over mountains, sunrise, sunset, foggy, circus tent, railway car, high-speed train, train, metro,
light rail, station, tram, monorail, mountain railway, oncoming bus, trolleybus, minibus,
oncoming police car, oncoming taxi, oncoming automobile, sport utility vehicle, delivery truck,
motorized wheelchair, motorway, railway track, vertical traffic light, ferry, passenger ship, motor boat,
small airplane, airplane departure, airplane arrival, suspension railway, mountain cableway,
hourglass not done, timer clock, mantelpiece clock, glowing star, sun behind small cloud,
sun behind large cloud, sun behind rain cloud, cloud with lightning and rain, closed umbrella,
umbrella with rain drops, umbrella on ground, snowman without snow, fog, new moon, waxing crescent moon,
first quarter moon, waxing gibbous moon, waning gibbous moon, last quarter moon, waning crescent moon,
new moon face, first quarter moon face, last quarter moon face, full moon, sparkler, ribbon,
1st place medal, 2nd place medal, 3rd place medal, sports medal, military medal, softball, volleyball,
rugby football, badminton, lacrosse, cricket game, lab coat, shorts, briefs, flat shoe, hiking boot,
man's shoe, woman's sandal, clutch bag, purse, shopping bags, woman's hat, billed cap, sunglasses, sari,
one-piece swimsuit, woman's clothes, muted speaker, speaker low volume, speaker medium volume, loudspeaker,
bell with slash, musical note, studio microphone, mobile phone with arrow, telephone receiver, pager,
fax machine, low battery, trackball, computer disk, dvd, camera with flash, film projector,
magnifying glass tilted right, green book, orange book, blue book, notebook, ledger, page with curl,
page facing up, rolled-up newspaper, bookmark tabs, bookmark, label, yen banknote, euro banknote,
pound banknote, money with wings, receipt, chart increasing with yen, e-mail, incoming envelope,
envelope with arrow, outbox tray, inbox tray, closed mailbox with raised flag,
closed mailbox with lowered flag, open mailbox with lowered flag, black nib, pen, memo, file folder,
open file folder, card index dividers, tear-off calendar, spiral notepad, spiral calendar, card index,
chart decreasing, clipboard, round pushpin, linked paperclips, triangular ruler, card file box,
locked with pen, locked with key, unlocked, old key, hammer and pick, hammer and wrench,
open mailbox with raised flag
""")

# Hard to name from the image at 64 px, or known only in a few countries.
_OBSCURE = split_names("""
wing, feather, dodo, microbe, coral, oyster, ginger root, pea pod, salt, ice, canned food, sheaf of rice,
building construction, brick, rock, hut, Tokyo tower, hot springs, playground slide, barber pole,
carousel horse, bridge at night, tram car, articulated lorry, auto rickshaw, manual wheelchair, bus stop,
oil drum, wheel, construction, aerial tramway, seat, wind face, cyclone, comet, milky way, thermometer,
pine decoration, tanabata tree, Japanese dolls, carp streamer, wind chime, moon viewing ceremony,
red envelope, reminder ribbon, admission tickets, ticket, firecracker, confetti ball, flying disc,
field hockey, martial arts uniform, goal net, flag in hole, running shirt, sled, curling stone, spade suit,
heart suit, diamond suit, club suit, joker, mahjong red dragon, flower playing cards, mirror ball,
nesting dolls, performing arts, knot, sewing needle, goggles, safety vest, kimono, thong sandal, hair pick,
prayer beads, military helmet, folding hand fan, postal horn, musical score, level slider, control knobs,
long drum, abacus, film frames, videocassette, diya lamp, postbox, ballot box with ballot, file cabinet,
clamp, white cane, link, chains, hook, nut and bolt, alembic, petri dish, x-ray, adhesive bandage, crutch,
mirror, window, elevator, plunger, mouse trap, razor, lotion bottle, safety pin, roll of paper, bubbles,
sponge, drop of blood, pick, balance scale, fondue, butter, pig nose, pushpin, straight ruler,
satellite antenna, magic wand, water pistol
""")

NOT_CLEAR = _NEAR_DUPLICATES | _OBSCURE
_CLOCK_FACES = ("o'clock", "-thirty")


def is_clear(emoji: Emoji) -> bool:
    """Whether the emoji belongs to the subset "clear"."""
    if emoji.name in NOT_CLEAR or emoji.name.endswith(_CLOCK_FACES):
        return False
    return emoji.subgroup in CLEAR_SUBGROUPS or emoji.name in CLEAR_NAMED


# Mirroring makes writing, maps, clock hands, charts and directions wrong.
NO_FLIP_GROUPS = split_names("flags")
NO_FLIP_SUBGROUPS = split_names("""
transport-sign, warning, arrow, religion, zodiac, av-symbol, gender, math, punctuation, currency,
other-symbol, keycap, alphanum, place-map, time, book-paper, money
""")
# In the name or in a tag, since tags become part of captions too.
DIRECTION_WORDS = split_names("""
left, right, leftward, leftwards, rightward, rightwards, clockwise, counterclockwise, anticlockwise, east,
west, forward, backward, reverse, rewind, direction
""")
# In the name: the thing has writing on it, or a side that matters.
SIDED_WORDS = split_names("calendar, chart, clock, keyboard, musical, quarter, sign, waning, waxing, writing")
NO_FLIP_NAMES = split_names("""
hundred points, ZZZ, sleeping face, face with symbols on mouth, money-mouth face, love hotel, hotel,
hospital, bank, convenience store, post office, Japanese post office, school, bus stop, taxi, oncoming taxi,
police car, oncoming police car, ambulance, 1st place medal, 2nd place medal, 3rd place medal, pool 8 ball,
slot machine, game die, joker, mahjong red dragon, flower playing cards, ticket, admission tickets, e-mail,
memo, name badge, placard, identification card, red envelope, elevator, clapper board, dvd, floppy disk,
card index
""")


def may_flip(emoji: Emoji) -> bool:
    """Whether the mirrored image still matches its captions."""
    if emoji.group in NO_FLIP_GROUPS or emoji.subgroup in NO_FLIP_SUBGROUPS or emoji.name in NO_FLIP_NAMES:
        return False
    if words_of(emoji.name) & SIDED_WORDS:
        return False
    return not any(words_of(text) & DIRECTION_WORDS for text in (emoji.name, *emoji.tags))


def words_of(text: str) -> set[str]:
    """The words of a name or tag, in lower case, without punctuation."""
    return set(re.findall(r"\w+", text.lower()))
