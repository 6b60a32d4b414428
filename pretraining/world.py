"""The world of the embedded base: styles, named colours, part words and the grammar of captions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from random import Random
from typing import Any

# Three shades of each named colour; a picture jitters one of them.
COLOURS: dict[str, tuple[str, ...]] = {
    "red": ("#e02f2f", "#d62839", "#ee3b3b"),
    "orange": ("#ff8c1a", "#f78a1d", "#ff9633"),
    "yellow": ("#ffdd33", "#fcd82b", "#ffe14d"),
    "lime": ("#b5e61d", "#aade2c", "#bfea3a"),
    "green": ("#2e9e46", "#2c9a4b", "#3aa655"),
    "cyan": ("#45d3e0", "#3fcfe8", "#5cdbe6"),
    "blue": ("#2f66e0", "#2b63d9", "#3f74e8"),
    "purple": ("#8a3fd1", "#8441c4", "#9650db"),
    "pink": ("#ff8fc4", "#fb88c0", "#ff9ccc"),
    "brown": ("#8b5a2b", "#855631", "#936238"),
    "gray": ("#8e9299", "#888d94", "#979ba1"),
    "white": ("#f5f5f2", "#f9f9f7", "#f2f3f5"),
    "black": ("#1b1c20", "#202126", "#17181c"),
}
# Faces are drawn in dark ink, so nothing with a face is black.
MAIN_COLOURS = tuple(name for name in COLOURS if name != "black")

# Pairs that a stranger confuses at 64 px; main colour and background are never such a pair.
_ALIKE = (
    {"orange", "brown"}, {"yellow", "lime"}, {"gray", "white"}, {"cyan", "blue"},
    {"pink", "purple"}, {"lime", "green"}, {"red", "orange"}, {"orange", "yellow"},
    {"brown", "red"}, {"gray", "brown"}, {"blue", "purple"},
)  # fmt: skip


@dataclass(frozen=True)
class StyleSpec:
    """One DiceBear style: its class noun, the parts that are used and the words for them."""

    style: str
    noun: str
    main: str  # DiceBear's option for the main colour
    accents: tuple[str, ...] = ()  # further colour options, drawn from all named colours
    parts: dict[str, dict[str, str]] = field(default_factory=dict)  # part -> variant -> phrase
    absent: dict[str, float] = field(default_factory=dict)  # part -> probability of absence
    silent: dict[str, tuple[str, ...]] = field(default_factory=dict)  # parts without words
    options: dict[str, Any] = field(default_factory=dict)  # fixed options
    roles: dict[str, str] = field(default_factory=dict)  # part -> eyes | mouth | headgear | extra
    held: str = ""  # phrase of the main colour, "in a {} shirt"; empty: only "a {} noun"
    scale: tuple[float, float] = (0.8, 1.1)
    rotate: float = 8.0
    shift: float = 6.0


_EYES = {
    "round": "round eyes", "mono": "one eye", "trio": "three eyes", "happy": "happy eyes",
    "closedLine": "closed eyes", "wink": "a wink", "angry": "angry eyes",
    "squint": "squinting eyes", "sleepy": "sleepy eyes",
}  # fmt: skip
_MOUTHS = {
    "smile": "a smile", "grin": "a grin", "teeth": "teeth", "ooh": "a round mouth",
    "wavy": "a wavy mouth", "frown": "a frown", "tongue": "a tongue", "line": "a flat mouth",
    "zigzag": "a zigzag mouth",
}  # fmt: skip
_FACE_ROLES = {"eyes": "eyes", "mouth": "mouth", "top": "headgear"}

STYLES: dict[str, StyleSpec] = {
    spec.noun: spec
    for spec in (
        StyleSpec(
            style="critters", noun="critter", main="body", accents=("accent",),
            parts={
                "eyes": _EYES, "mouth": _MOUTHS,
                "top": {
                    "horns": "horns", "hornsIn": "horns", "spike": "a spike",
                    "antenna": "an antenna", "antennae": "two antennae",
                    "earsRound": "round ears", "earsPointy": "pointy ears",
                    "earsDroop": "droopy ears", "spikes": "spikes", "crown": "a crown",
                    "sprout": "a leaf",
                },
            },
            absent={"top": 0.1, "pattern": 0.6, "cheeks": 0.8},
            silent={
                "body": ("dome", "block", "tower", "blob", "round", "bell", "wedge", "peak"),
                "pattern": ("belly", "dots", "stripes", "spot", "chevron"),
                "cheeks": ("blush",),
            },
            roles=_FACE_ROLES,
        ),
        StyleSpec(
            style="sprouts", noun="plant", main="pot", accents=("bloom",), held="in a {} pot",
            parts={
                "eyes": {k: _EYES[k] for k in (
                    "round", "happy", "closedLine", "wink", "angry", "sleepy")},
                "mouth": {k: _MOUTHS[k] for k in (
                    "smile", "grin", "ooh", "wavy", "frown", "tongue", "line")},
                "plant": {
                    "cactus": "a cactus", "bush": "a bush", "flower": "a flower",
                    "tulip": "a tulip", "palm": "a palm", "grass": "grass",
                    "seedling": "two leaves",
                },
            },
            absent={"pattern": 0.7, "cheeks": 0.8},
            silent={
                "pot": ("taper", "cylinder", "bowl", "round", "rim"),
                "pattern": ("band", "dots", "stripes"), "cheeks": ("blush",),
            },
            options={"plantColor": ["#4ade80", "#34d399", "#22c55e", "#86efac", "#15a34a"]},
            roles={"eyes": "eyes", "mouth": "mouth", "plant": "headgear"},
            scale=(0.9, 1.2),
        ),
        StyleSpec(
            style="voxel-bot", noun="robot", main="body",
            parts={
                "eyes": {
                    "round": "round eyes", "square": "square eyes", "visor": "a visor",
                    "cyclops": "one eye", "happy": "happy eyes", "sleepy": "sleepy eyes",
                    "plus": "plus eyes",
                },
                "mouth": {
                    "grill": "a grill mouth", "line": "a flat mouth", "smile": "a smile",
                    "zigzag": "a zigzag mouth",
                },
                "top": {
                    "antenna": "an antenna", "twin": "two antennae", "dish": "a dish",
                    "fin": "a fin", "siren": "a siren",
                },
                "chest": {
                    "heart": "a heart", "screen": "a chest screen", "vents": "vents",
                    "buttons": "buttons",
                },
            },
            absent={"top": 0.1, "chest": 0.1},
            options={"glowColor": ["#3bc9db", "#69db7c", "#ffd43b", "#ff6b6b", "#e599f7"]},
            roles={"eyes": "eyes", "mouth": "mouth", "top": "headgear", "chest": "extra"},
            scale=(0.85, 1.15),
        ),
        StyleSpec(
            style="planets", noun="planet", main="planet",
            parts={
                "surface": {
                    "banded": "stripes", "cratered": "craters", "swirl": "a swirl",
                    "spotted": "spots", "terra": "continents", "cracked": "cracks",
                },
                "ring": {"thin": "a ring", "bold": "a ring", "double": "a double ring"},
                "moons": {"one": "a moon", "two": "two moons"},
            },
            absent={"ring": 0.5, "moons": 0.5},
            silent={"shade": ("soft", "hard")},
            options={"starProbability": 25},
            roles={"surface": "extra", "ring": "headgear", "moons": "extra"},
        ),
        StyleSpec(
            style="voxel-art", noun="person", main="shirt", held="in a {} shirt",
            accents=("hat",),
            parts={
                "top": {
                    "short": "short hair", "spiky": "spiky hair", "mohawk": "a mohawk",
                    "longStraight": "long hair", "buns": "hair buns", "afro": "an afro",
                    "cap": "a cap", "beanie": "a beanie", "bunnyEars": "bunny ears",
                    "animalEars": "cat ears",
                },
                "glasses": {"round": "glasses", "shades": "sunglasses"},
                "beard": {"full": "a beard"},
            },
            absent={"glasses": 0.7, "beard": 0.8, "cheeks": 0.6},
            silent={
                "outfit": ("plain", "stripes", "hoodie"), "eyes": ("open", "soft", "happy"),
                "mouth": ("smile", "flat", "ooh", "laugh"), "eyebrows": ("flat", "raised"),
                "nose": ("block", "small"), "cheeks": ("blush",),
            },
            roles={"top": "headgear", "glasses": "extra", "beard": "extra"},
            scale=(0.8, 1.05),
        ),
    )
}  # fmt: skip

# Whole styles that no training picture shows.
HELD_OUT_STYLES: dict[str, StyleSpec] = {
    spec.noun: spec
    for spec in (
        StyleSpec(
            style="clay", noun="clay figure", main="body", accents=("accent",),
            parts={
                "eyes": {k: _EYES[k] for k in ("mono", "trio", "happy", "wink")},
                "mouth": {k: _MOUTHS[k] for k in ("smile", "grin", "teeth", "frown", "wavy")},
                "top": {"horns": "horns", "spikes": "spikes", "antenna": "an antenna",
                        "ears": "round ears"},
            },
            silent={"body": ("pear", "boulder", "column", "egg", "bell"),
                    "pattern": ("spiral", "buttons", "patch")},
            absent={"pattern": 0.5},
            roles=_FACE_ROLES,
        ),
        StyleSpec(
            style="moods", noun="face", main="face",
            parts={
                "eyes": {"pupils": "round eyes", "happy": "happy eyes", "wink": "a wink",
                         "sleepy": "sleepy eyes", "angry": "angry eyes"},
                "mouth": {"smile": "a smile", "grin": "a grin", "frown": "a frown",
                          "tongue": "a tongue", "wavy": "a wavy mouth"},
            },
            silent={"face": ("circle", "softSquare", "hexagon", "bean")},
            roles=_FACE_ROLES,
        ),
    )
}  # fmt: skip

_HEADS = (
    ("a photo of", 0.32), ("", 0.28), ("a picture of", 0.16), ("an image of", 0.08),
    ("a drawing of", 0.08), ("a portrait of", 0.04), ("a rendering of", 0.04),
)  # fmt: skip
_PLACES = ("on a {} background", "on a {} background", "in front of a {} wall",
           "against a {} background")  # fmt: skip


def spec_of(noun: str) -> StyleSpec:
    """Return the style with this class noun, training or held out."""
    return STYLES.get(noun) or HELD_OUT_STYLES[noun]


def alike(first: str, second: str) -> bool:
    """Return whether two colour names are the same or easily confused."""
    return first == second or {first, second} in _ALIKE


def shade(name: str, random: Random) -> str:
    """Return a jittered hex value of the named colour."""
    value = random.choice(COLOURS[name])
    channels = (int(value[i : i + 2], 16) + random.randint(-9, 9) for i in (1, 3, 5))
    return "#" + "".join(f"{min(255, max(0, c)):02x}" for c in channels)


def identity_is_held_out(noun: str, variants: dict[str, str], colour: str) -> bool:
    """Return whether this combination of parts and main colour never enters training (1 in 16)."""
    stable = {k: v for k, v in sorted(variants.items()) if k not in ("mouth", "cheeks", "moons")}
    digest = hashlib.sha256(repr((noun, sorted(stable.items()), colour)).encode()).digest()
    return digest[0] < 16


def caption(attributes: dict[str, Any], random: Random, keep: float | None = None) -> str:
    """Write one caption; each optional attribute is kept with probability `keep`.

    Without `keep` it is drawn per caption, so that both terse and full captions occur.
    """
    spec = spec_of(attributes["noun"])
    if keep is None:
        keep = random.choice((0.0, 0.45, 0.6, 0.75, 1.0))
    head = random.choices([h for h, _ in _HEADS], [w for _, w in _HEADS])[0]
    names_colour = random.random() < (0.9 if keep else 0.35)
    adjectives, held = [], ""
    if attributes.get("size") and random.random() < 0.35 * keep:
        adjectives.append(attributes["size"])
    if names_colour and spec.held and random.random() < 0.65:
        held = spec.held.format(attributes["main"])
    elif names_colour:
        adjectives.append(attributes["main"])
    thing = " ".join([*adjectives, spec.noun])
    article = "an" if thing[0] in "aeiou" else "a"
    words = [head, article, thing, held]
    phrases = [p for p in attributes["phrases"].values() if random.random() < keep]
    random.shuffle(phrases)
    if phrases:
        listed = " and ".join([", ".join(phrases[:-1])] * bool(phrases[1:]) + phrases[-1:])
        words.append("with " + listed)
    if random.random() < (0.85 if keep else 0.4):
        words.append(random.choice(_PLACES).format(attributes["background"]))
    return " ".join(word for word in words if word).replace(" a orange", " an orange")
