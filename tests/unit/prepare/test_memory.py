"""What changed between two lists of pictures is said by name."""

from limner.prepare.memory import tell_changes


def test_changes_are_named():
    known = {"a.png": "1", "b.png": "2", "c.png": "3"}
    assert tell_changes(known, known) == "the same pictures, with other captions, masks or crops"
    present = {"a.png": "1", "b.png": "9", "d.png": "4", "e.png": "5"}
    said = "2 files added: d.png, e.png; 1 file removed: c.png; 1 file changed: b.png"
    assert tell_changes(known, present) == said
    many = {**known, **{f"{i}.png": "x" for i in range(7)}}
    assert tell_changes(known, many) == "7 files added: 0.png, 1.png, 2.png and 4 more"
