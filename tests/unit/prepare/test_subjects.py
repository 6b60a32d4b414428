"""Several subjects in one set: balanced, with their own words, and never mixed."""

from collections import Counter

import pytest

from limner.errors import UserError
from limner.pictures.spec import Pictures
from limner.prepare.check import check_pictures

SPEC = Pictures(subjects=True)


def test_subjects_are_seen_equally_often_and_captioned_by_their_folder(make_folder, tmp_path):
    make_folder(3, name="set/sks dog")
    make_folder(11, name="set/ohwx tea pot", first=20)
    checked = check_pictures(tmp_path / "set", SPEC, resolution_px=32)
    assert Counter(e.caption for e in checked.examples) == {
        "a photo of sks dog": 3,
        "a photo of ohwx tea pot": 11,
    }
    order = checked.order(2)
    seen = Counter(i for step in range(33) for i in order.rows(step, 0)[0])
    by_subject = Counter()
    for index, count in seen.items():
        by_subject[checked.examples[index].picture.subject] += count
    assert by_subject["sks dog"] == by_subject["ohwx tea pot"] == 33
    dogs = [seen[i] for i, e in enumerate(checked.examples) if e.picture.subject == "sks dog"]
    assert dogs == [11, 11, 11]


def test_triggers_may_not_collide(make_folder, tmp_path):
    make_folder(1, name="a/ann woman")
    make_folder(1, name="a/anna woman", first=5)
    with pytest.raises(UserError, match="trigger 'ann' is a prefix of the other"):
        check_pictures(tmp_path / "a", SPEC, resolution_px=32)
    make_folder(1, name="b/sks dog")
    make_folder(1, name="b/sks cat", first=5)
    with pytest.raises(UserError, match="have the same trigger 'sks'"):
        check_pictures(tmp_path / "b", SPEC, resolution_px=32)


def test_a_picture_belongs_to_one_subject(make_folder, tmp_path):
    make_folder(2, name="set/sks dog")
    make_folder(2, name="set/ohwx cat", first=1)
    with pytest.raises(UserError, match=r"1 pictures are in two subjects:\n  ohwx cat/001.png  and  sks dog/001.png"):
        check_pictures(tmp_path / "set", SPEC, resolution_px=32)


def test_an_empty_subject_and_a_single_one_are_refused(make_folder, tmp_path):
    make_folder(2, name="set/sks dog")
    with pytest.raises(UserError, match="has 1 sub-folders"):
        check_pictures(tmp_path / "set", SPEC, resolution_px=32)
    (tmp_path / "set" / "ohwx cat").mkdir()
    with pytest.raises(UserError, match=r"No pictures in .*ohwx cat \(it is empty\)"):
        check_pictures(tmp_path / "set", SPEC, resolution_px=32)
