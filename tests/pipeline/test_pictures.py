"""What a run says about its pictures: before any weight is read, when it is resumed, when they are held out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


from limner import run
from limner.errors import UserError
from limner.families.load import ASSETS
from limner.watch import Watch

CRITTER = ASSETS / "demo" / "critter"


class Lines(Watch):
    """Keeps the lines that are said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_the_token_is_checked_before_any_weight_is_read(random_base: Path, tmp_path: Path) -> None:
    base = shutil.copytree(random_base, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    lines = Lines()
    settings = {"base": str(base), "pictures.token": "critter", "pictures.class_noun": "dog", "steps": 4}
    run.check(CRITTER, settings=settings, watch=lines)
    assert any(line.startswith("the token 'critter' is a common word of the base") for line in lines.said)
    with pytest.raises(UserError, match="is also in pictures.class_noun"):
        run.check(CRITTER, settings={**settings, "pictures.class_noun": "critter"})
