"""Stage `demo`: five pictures each of held-out subjects, for the demo, the tests and studies."""

from __future__ import annotations

from pathlib import Path
from random import Random

from pretraining.pictures import Identity, change_face, draw_picture
from pretraining.world import HELD_OUT_STYLES, identity_is_held_out, shade

ASSETS = Path(__file__).parent.parent / "src" / "limner" / "assets" / "demo"
PICTURES, RESOLUTION_PX = 5, 256


def _subject(noun: str, main: str, variants: dict[str, str], **colours: str) -> Identity:
    """Return a subject with fixed parts; colours are given as DiceBear option=colour name."""
    random = Random(f"{noun} {main}")
    shades = {option: shade(name, random) for option, name in colours.items()}
    identity = Identity(noun, variants, main, shades, random.randrange(2**31))
    if noun not in HELD_OUT_STYLES and not identity_is_held_out(noun, variants, main):
        raise ValueError(f"{noun} {variants} in {main} is a training identity: choose other parts")
    return identity


def subjects() -> dict[str, tuple[Identity, tuple[str, ...]]]:
    """Return the demo subjects by folder name, each with the backgrounds of its pictures."""
    crown = {"eyes": "trio", "mouth": "smile", "top": "crown", "body": "bell", "pattern": "dots"}
    dish = {"eyes": "sleepy", "mouth": "zigzag", "top": "dish", "chest": "heart"}
    tulip = {"eyes": "angry", "mouth": "wavy", "plant": "tulip", "pot": "bowl"}
    horned = {"eyes": "mono", "mouth": "teeth", "top": "horns", "body": "pear", "pattern": "spiral"}
    return {
        "critter": (
            _subject("critter", "blue", crown, body="blue", accent="orange"),
            ("white", "yellow", "green", "pink", "black"),
        ),
        "robot": (
            _subject("robot", "lime", dish, body="lime"),
            ("blue", "pink", "black", "orange", "white"),
        ),
        "plant": (
            _subject("plant", "cyan", tulip, pot="cyan", bloom="orange"),
            ("purple", "white", "yellow", "gray", "red"),
        ),
        "clay_figure": (
            _subject("clay figure", "purple", horned, body="purple", accent="yellow"),
            ("green", "white", "yellow", "black", "cyan"),
        ),
    }


def run(work: Path, minutes: float | None = None) -> None:
    """Render the pictures into the assets; `work` and `minutes` have no meaning here."""
    for name, (identity, backgrounds) in subjects().items():
        folder = ASSETS / name
        folder.mkdir(parents=True, exist_ok=True)
        random = Random(name)
        for i, background in enumerate(backgrounds, 1):
            posed = change_face(identity, random)
            image, _ = draw_picture(posed, random, RESOLUTION_PX, background)
            image.save(folder / f"{i}.png", optimize=True)
