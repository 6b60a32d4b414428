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
    scale: tuple[float, float] = (0.95, 1.15)
    rotate: float = 5.0
    shift: float = 4.0
    drop: float = 0.0  # per cent of the picture by which the subject hangs lower


_EYES = {
    "round": "round eyes", "mono": "one eye", "trio": "three eyes", "closedLine": "closed eyes",
    "angry": "angry eyes",
}  # fmt: skip
_MOUTHS = {"smile": "a smile", "teeth": "teeth", "ooh": "a round mouth", "frown": "a frown"}
ROLES = ("eyes", "mouth", "headgear")  # of the parts that captions name
_FACE_ROLES = {"eyes": "eyes", "mouth": "mouth", "top": "headgear"}

STYLES: dict[str, StyleSpec] = {
    spec.noun: spec
    for spec in (
        StyleSpec(
            style="critters", noun="critter", main="body", accents=("accent",),
            parts={
                "eyes": _EYES, "mouth": _MOUTHS,
                "top": {
                    "horns": "horns", "crown": "a crown", "sprout": "a leaf",
                    "earsRound": "round ears", "antennae": "two antennae", "spikes": "spikes",
                },
            },
            absent={"top": 0.1},
            silent={"body": ("dome", "block", "bell", "peak")},
            options={"patternProbability": 0, "cheeksProbability": 0},
            roles=_FACE_ROLES,
            scale=(0.9, 1.05), drop=4.0,
        ),
        StyleSpec(
            style="sprouts", noun="plant", main="pot", held="in a {} pot",
            parts={
                "eyes": {k: _EYES[k] for k in ("round", "closedLine", "angry")},
                "mouth": {k: _MOUTHS[k] for k in ("smile", "ooh", "frown")},
                "plant": {
                    "cactus": "a cactus", "bush": "a bush", "flower": "a flower",
                    "palm": "a palm", "grass": "grass", "seedling": "two leaves",
                },
            },
            silent={"pot": ("taper", "cylinder", "bowl")},
            options={
                "plantColor": ["#22a34a"], "bloomColor": ["#f7e04d"],
                "patternProbability": 0, "cheeksProbability": 0,
            },
            roles={"eyes": "eyes", "mouth": "mouth", "plant": "headgear"},
            scale=(1.0, 1.2),
        ),
        StyleSpec(
            style="voxel-bot", noun="robot", main="body",
            parts={
                "eyes": {
                    "round": "round eyes", "visor": "a visor", "cyclops": "one eye",
                    "plus": "plus eyes",
                },
                "mouth": {"grill": "a grill mouth", "smile": "a smile", "line": "a flat mouth"},
                "top": {"antenna": "an antenna", "twin": "two antennae", "fin": "a fin"},
            },
            absent={"top": 0.1},
            options={"glowColor": ["#69f0f0"], "chestProbability": 0},
            roles=_FACE_ROLES,
            scale=(1.2, 1.35), drop=10.0,
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
                "eyes": {k: _EYES[k] for k in ("mono", "trio")},
                "mouth": {k: _MOUTHS[k] for k in ("smile", "teeth", "frown")},
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
                "eyes": {"pupils": "round eyes", "angry": "angry eyes"},
                "mouth": {"smile": "a smile", "frown": "a frown"},
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
        keep = random.choice((0.0, 0.5, 0.8, 1.0, 1.0))
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
