"""Every nasty file gives its pixels or its reason, and a folder of all of them gives one complete message."""

import re

import pytest

from limner.errors import UserError
from limner.pictures.decode import BadPicture, decode
from limner.pictures.picture import Picture
from limner.pictures.spec import Pictures
from limner.prepare.check import check_pictures
from limner.prepare.look import look_at
from tests.corpus.files import Case, cases

CASES = cases()


def reason_matches(case: Case, reason: str) -> bool:
    return bool(re.search(case.problem, reason)) if case.problem.startswith("^") else reason.startswith(case.problem)


def test_the_corpus_is_large_enough():
    assert len(CASES) >= 60


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_file(name, tmp_path):
    case, path = CASES[name], tmp_path / name
    path.write_bytes(case.data)
    look = look_at(Picture(name, path), Pictures())
    if case.problem:
        assert reason_matches(case, look.problem), look.problem
        with pytest.raises(BadPicture) as caught:
            decode(path)
        assert str(caught.value) == look.problem
        return
    image = decode(path)
    assert not look.problem
    assert image.mode == "RGB"
    assert image.size == look.size == case.size
    for place, expected in case.pixels.items():
        found = image.getpixel(place)
        assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= case.tolerance, (place, found)
    if case.note:
        assert any(case.note in note for note in look.notes), look.notes


def test_all_at_once_are_one_message_and_the_good_ones_are_used(tmp_path):
    for name, case in CASES.items():
        (tmp_path / name).write_bytes(case.data)
    bad = {name for name, case in CASES.items() if case.problem}
    with pytest.raises(UserError) as caught:
        check_pictures(tmp_path, Pictures(), resolution_px=64)
    lines = caught.value.message.splitlines()
    assert lines[0] == f"{len(bad)} of {len(CASES)} pictures cannot be used:"
    assert {line.split()[0] for line in lines[1:]} == bad
    checked = check_pictures(tmp_path, Pictures(skip_bad=True, max_upscale=100), resolution_px=64)
    assert {example.name for example in checked.examples} == set(CASES) - bad
    assert {exclusion.name for exclusion in checked.exclusions} == bad
    assert checked.given == len(CASES)
