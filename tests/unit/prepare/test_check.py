"""Every problem of every file at once, before anything is loaded; the folder is only read."""

import hashlib
import os
from pathlib import Path

import pytest
from PIL import Image

from limner.errors import UserError
from limner.pictures.spec import Pictures, Prior
from limner.prepare.check import check_class_pictures, check_pictures

SPEC = Pictures(class_noun="dog")


def state_of(folder: Path) -> dict[str, tuple[str, int]]:
    """Return name, bytes and time of change of everything in a folder."""
    return {
        str(p.relative_to(folder)): (
            hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "",
            p.lstat().st_mtime_ns,
        )
        for p in folder.rglob("*")
    }


def test_all_bad_files_are_listed_at_once_and_the_folder_is_untouched(make_folder):
    folder = make_folder(3)
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "cut.png").write_bytes((folder / "000.png").read_bytes()[:300])
    (folder / "text.jpg").write_text("this is a note", encoding="utf-8")
    (folder / "link.png").symlink_to(folder / "nowhere.png")
    (folder / "x.png").mkdir()
    (folder / ".ipynb_checkpoints").mkdir()
    for name in ("Thumbs.db", ".DS_Store", "._000.png", "notes.md"):
        (folder / name).write_text("x", encoding="utf-8")
    before = state_of(folder)
    with pytest.raises(UserError) as caught:
        check_pictures(folder, SPEC, resolution_px=32)
    lines = caught.value.message.splitlines()
    assert lines[0] == "4 of 7 pictures cannot be used:"
    assert [line.split("  ", 2)[1].strip() for line in lines[1:]] == ["cut.png", "link.png", "text.jpg", "zero.jpg"]
    assert "truncated after 300 bytes" in lines[1]
    assert "cannot be read (No such file or directory)" in lines[2]
    assert "is not a picture but text" in lines[3]
    assert "0 bytes" in lines[4]
    assert caught.value.hint == "Fix or remove them, or set pictures.skip_bad=true."
    assert caught.value.exit_code == 2
    assert state_of(folder) == before


def test_skip_bad_goes_on_and_records_what_was_left_out(make_folder):
    folder = make_folder(3)
    (folder / "zero.jpg").write_bytes(b"")
    checked = check_pictures(folder, SPEC.model_copy(update={"skip_bad": True}), resolution_px=32)
    assert [e.name for e in checked.examples] == ["000.png", "001.png", "002.png"]
    assert [(e.name, e.reason) for e in checked.exclusions] == [("zero.jpg", "0 bytes")]
    assert checked.given == 4
    assert checked.notes[0] == "4 given: 3 used, 1 excluded\n  zero.jpg  0 bytes"


def test_nothing_left_is_an_error_even_with_skip_bad(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="1 of 1 pictures cannot be used"):
        check_pictures(tmp_path, SPEC.model_copy(update={"skip_bad": True}), resolution_px=32)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_named(make_folder):
    folder = make_folder(2)
    (folder / "000.png").chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        check_pictures(folder, SPEC, resolution_px=32)


def test_too_small_pictures_are_excluded_with_the_factor(make_folder):
    folder = make_folder(2)
    Image.new("RGB", (9, 6)).save(folder / "z.png")
    checked = check_pictures(folder, SPEC, resolution_px=64)
    assert checked.notes[0].startswith("3 given: 2 used, 1 excluded")
    assert checked.exclusions[0].reason == "9×6, needs 8.9× upscale > pictures.max_upscale=4"
    with pytest.raises(UserError, match="None of 1 pictures can be used"):
        check_pictures(folder / "z.png", SPEC, resolution_px=64)


def test_disguised_files_are_accepted_with_a_note(make_folder):
    folder = make_folder(1)
    Image.open(folder / "000.png").save(folder / "a.webp")
    (folder / "a.webp").rename(folder / "b.jpg")
    checked = check_pictures(folder, SPEC, resolution_px=32)
    assert "b.jpg: is really a WEBP (accepted)" in checked.notes


def test_pictures_in_a_sub_folder_are_pointed_out(make_folder, tmp_path):
    make_folder(2, name="img/dogs")
    with pytest.raises(UserError) as caught:
        check_pictures(tmp_path / "img", SPEC, resolution_px=32)
    assert caught.value.message == f"No pictures in {tmp_path / 'img'} (it has 1 sub-folder: 'dogs' with 2 pictures)."
    assert caught.value.hint == f"Did you mean {tmp_path / 'img' / 'dogs'}?"


def test_a_missing_folder_names_a_near_one(make_folder, tmp_path):
    make_folder(1, name="my_dog")
    with pytest.raises(UserError, match="there is no such file or folder. Did you mean .*my_dog"):
        check_pictures(tmp_path / "my_dgo", SPEC, resolution_px=32)


def test_several_folders_and_files_keep_their_names_apart(make_folder):
    a, b = make_folder(2, name="a"), make_folder(2, name="b")
    checked = check_pictures([a, b, a / "000.png"], SPEC, resolution_px=32)
    assert [e.name for e in checked.examples] == ["a/000.png", "a/001.png", "b/000.png", "b/001.png"]
    assert any("named twice, used once" in note for note in checked.notes)


def test_upper_case_endings_are_found(make_folder):
    folder = make_folder(1)
    (folder / "000.png").rename(folder / "A.PNG")
    assert [e.name for e in check_pictures(folder, SPEC, resolution_px=32).examples] == ["A.PNG"]


def test_prior_and_instance_folders_may_not_be_nested(make_folder):
    own, inner = make_folder(2, name="own"), make_folder(2, name="own/class")
    with pytest.raises(UserError, match="prior folder is inside the instance folder"):
        check_class_pictures(inner, SPEC, Prior(enabled=True), resolution_px=32, instance=own)
    with pytest.raises(UserError, match="instance folder is inside the prior folder"):
        check_class_pictures(own, SPEC, Prior(enabled=True), resolution_px=32, instance=inner)
    with pytest.raises(UserError, match="both the prior folder and the instance folder"):
        check_class_pictures(own, SPEC, Prior(enabled=True), resolution_px=32, instance=own)


def test_class_prompt_may_not_hold_the_token(make_folder):
    prior = Prior(enabled=True, prompts=("a {class_noun}", "a sks {class_noun}"))
    with pytest.raises(UserError, match="prior.prompts: 'a sks dog' contains the trigger 'sks'"):
        check_class_pictures(make_folder(1), SPEC, prior, resolution_px=32)
    with pytest.raises(UserError, match="pictures.class_noun is not set"):
        check_class_pictures(make_folder(1, name="b"), Pictures(), Prior(enabled=True), resolution_px=32)


def test_several_resolutions_show_each_picture_at_each(make_folder):
    folder = make_folder(3, size=(64, 64))
    Image.new("RGB", (20, 20), "red").save(folder / "small.png")
    spec = SPEC.model_copy(update={"extra_resolutions": (64, 96)})
    checked = check_pictures(folder, spec, resolution_px=32)
    assert checked.notes[0] == "4 given: 4 used"
    assert checked.num_pictures == checked.given == 4
    sizes = [(e.name, e.fit.size[0]) for e in checked.examples]
    assert sizes == [(f"00{i}.png", px) for i in range(3) for px in (32, 64, 96)] + [
        ("small.png", 32),
        ("small.png", 64),
    ]
    order = checked.order(2)
    seen = [i for step in range(order.steps_per_epoch()) for i in order.rows(step, 0)[0]]
    assert sorted(seen) == list(range(11))
    with pytest.raises(UserError, match=r"extra_resolutions: 50 is not a multiple of 16. Use e.g. 48."):
        check_pictures(folder, SPEC.model_copy(update={"extra_resolutions": (50,)}), resolution_px=32)


def test_captions_that_never_name_the_token_are_pointed_out(make_folder):
    folder = make_folder(2)
    for stem in ("000", "001"):
        (folder / f"{stem}.txt").write_text("a brown dog, sksy", encoding="utf-8")
    note = "no caption names 'sks': pictures.prefix='sks, ' puts it before each"
    assert check_pictures(folder, SPEC, resolution_px=32).notes[-1] == note
    assert note not in check_pictures(folder, Pictures(prefix="{token},"), resolution_px=32).notes
    assert note not in check_class_pictures(folder, SPEC, Prior(enabled=True), resolution_px=32).notes


def test_class_captions_may_not_name_the_token(make_folder):
    folder = make_folder(2)
    for stem in ("000", "001"):
        (folder / f"{stem}.txt").write_text("a sks, dog", encoding="utf-8")
    with pytest.raises(UserError, match=r"000.png: the caption of this class picture contains .* 'sks' \(2 of 2 do\)"):
        check_class_pictures(folder, SPEC, Prior(enabled=True), resolution_px=32)


def test_many_lines_of_one_kind_are_cut(make_folder):
    folder = make_folder(1)
    for number in range(20):
        (folder / f"copy{number:02d}.png").write_bytes((folder / "000.png").read_bytes())
    notes = check_pictures(folder, SPEC, resolution_px=32).notes
    assert sum("is the same file as" in note for note in notes) == 12
    assert "... and 8 more of this kind" in notes


def test_an_ending_without_its_dot_is_refused():
    with pytest.raises(ValueError, match="'txt' is not a file ending; write it with its dot"):
        Pictures(caption_ext="txt")
