"""The bleed matrix: a planted bleed is found in its cell and nowhere else, and the page shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from limner.errors import UserError
from limner.evaluate.bleed import Sitter, bleed
from limner.metrics.bleed import Bleed
from limner.metrics.colour_histogram import ColourHistogram
from limner.report.bleed import report_bleed
from limner.rundir import write_json

RED, BLUE, GREEN = (200, 30, 30), (30, 30, 200), (30, 180, 30)
PROMPTS, IMAGES = 8, 2


def paint(folder: Path, colours: list[tuple[int, int, int]], *, kind: str) -> Path:
    """Write pictures, each half its colour and half a grey of its own, and their manifest."""
    folder.mkdir(parents=True)
    rows = []
    for number, colour in enumerate(colours):
        image = Image.new("RGB", (32, 32), (90 + 10 * (number % 8),) * 3)
        image.paste(colour, (0, 0, 32, 18 + number % 3))
        image.save(folder / f"{number:02d}.png")
        prompt = {"prompt": f"prompt {number // IMAGES}", "prompt_index": number // IMAGES}
        rows.append({"file": f"{number:02d}.png", "image_index": number % IMAGES, **prompt})
    write_json(folder / "manifest.json", {kind: rows})
    return folder


@pytest.fixture
def sitters(tmp_path: Path) -> list[Sitter]:
    """Make tom (red) and bob (blue); together with bob, tom's pictures turn half blue."""
    every = PROMPTS * IMAGES
    drawn = {
        ("tom", "alone"): [RED] * every, ("tom", "together"): [RED, BLUE] * (every // 2),
        ("bob", "alone"): [BLUE] * every, ("bob", "together"): [BLUE] * every,
    }  # fmt: skip
    folders = {key: paint(tmp_path / "images" / key[1] / key[0], own, kind="images") for key, own in drawn.items()}
    return [
        Sitter(name, f"{token} man", paint(tmp_path / name, [colour] * 3, kind="pictures"), folders[name, "alone"],
               folders[name, "together"])
        for name, token, colour in (("tom", "sks", RED), ("bob", "ohwx", BLUE))
    ]  # fmt: skip


def test_a_planted_bleed_is_found(sitters: list[Sitter], tmp_path: Path) -> None:
    found = bleed("tiny", sitters, ColourHistogram(), progress=lambda done, total, note: None)
    worst = found.most_changed
    assert (worst.trigger, worst.subject) == ("tom", "bob")
    assert worst.change.low is not None
    assert worst.change.low > 0.1
    assert worst.together.n_units == PROMPTS
    assert found.cell("bob", "tom").change.mean == 0
    assert found.cell("tom", "tom").change.mean < -0.1
    assert found.headline == "tom bleeds into bob"
    assert found.lines[0].startswith("max bleed: 'tom' -> 'bob' 0.")
    assert found.lines[1].startswith("drawn together, 'tom' comes nearer to 'bob' by +0.")
    write_json(tmp_path / "bleed.json", found.model_dump(mode="json"))
    page = report_bleed(tmp_path, {one.name: one.pictures for one in sitters}).read_text(encoding="utf-8")
    assert "tom bleeds into bob" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert page.count("<img") == 2 + 2 * (3 + 4 + 4)


def test_where_nothing_changed_nothing_is_claimed(sitters: list[Sitter]) -> None:
    same = [Sitter(one.name, one.words, one.pictures, one.alone, one.alone) for one in sitters]
    found = bleed("tiny", same, ColourHistogram(), progress=lambda done, total, note: None)
    assert found.headline == "No bleed that these pictures show"
    assert all(cell.change.mean == 0 for cell in found.cells)
    assert found.worst.together.mean < found.cell("tom", "tom").together.mean
    assert Bleed.model_validate(found.model_dump(mode="json")) == found


def test_a_subject_without_pictures_is_refused(sitters: list[Sitter], tmp_path: Path) -> None:
    empty = Sitter("tom", "sks man", tmp_path, sitters[0].alone, sitters[0].together)
    with pytest.raises(UserError, match="holds no pictures of tom"):
        bleed("tiny", [empty, sitters[1]], ColourHistogram(), progress=lambda done, total, note: None)
