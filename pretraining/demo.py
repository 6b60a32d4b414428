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
    crown = {"eyes": "trio", "mouth": "smile", "top": "crown", "body": "peak"}
    block = {"eyes": "mono", "mouth": "smile", "top": "crown", "body": "block"}
    visor = {"eyes": "visor", "mouth": "smile", "top": "fin"}
    cyclops = {"eyes": "cyclops", "mouth": "line", "top": "antenna"}
    flower = {"eyes": "angry", "mouth": "frown", "plant": "flower", "pot": "bowl"}
    horned = {"eyes": "mono", "mouth": "teeth", "top": "horns", "body": "pear", "pattern": "spiral"}
    return {
        "critter": (
            _subject("critter", "purple", crown, body="purple", accent="yellow"),
            ("white", "cyan", "green", "orange", "black"),
        ),
        "critter_cyan": (
            _subject("critter", "cyan", block, body="cyan", accent="red"),
            ("yellow", "pink", "white", "black", "brown"),
        ),
        "robot": (
            _subject("robot", "lime", visor, body="lime"),
            ("blue", "pink", "black", "orange", "white"),
        ),
        "robot_gray": (
            _subject("robot", "gray", cyclops, body="gray"),
            ("red", "yellow", "green", "purple", "cyan"),
        ),
        "plant": (
            _subject("plant", "blue", flower, pot="blue"),
            ("orange", "white", "pink", "gray", "red"),
        ),
        "clay_figure": (
            _subject("clay figure", "purple", horned, body="purple", accent="yellow"),
            ("green", "white", "orange", "black", "cyan"),
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
