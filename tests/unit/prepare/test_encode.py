"""Cached moments and text: right when something changes, reused when nothing does."""

import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image, ImageOps

from limner.errors import UserError
from limner.pictures.decode import decode
from limner.pictures.spec import Pictures, Prior
from limner.prepare.check import check_class_pictures, check_pictures
from limner.prepare.encode import Portion, prepare, to_pixels
from limner.prepare.save import save_pictures
from limner.rundir import read_json
from tests.unit.prepare.conftest import SmallFamily, picture

SPEC = Pictures(class_noun="dog")


def test_rows_are_instance_first_then_as_many_class_rows(make_folder, small, tmp_path):
    own, others = make_folder(3, name="own"), make_folder(5, name="class", first=10)
    checked = check_pictures(own, SPEC, resolution_px=32)
    prior = check_class_pictures(others, SPEC, Prior(enabled=True, weight=0.5), resolution_px=32, instance=own)
    prepared = prepare(checked, small, spec=SPEC, cache=tmp_path / "c", prior=prior, batch=2)
    batch = prepared.batch(0, seed=3)
    assert batch.is_prior == (False, False, True, True)
    assert batch.weight.tolist() == [1.0, 1.0, 0.5, 0.5]
    assert batch.captions == ("a photo of sks dog",) * 2 + ("a photo of a dog",) * 2
    assert batch.moments.shape == (4, 2, 4, 8, 8)
    assert len(batch.conditioning) == 4
    class_names = [name for step in range(5) for name in prepared.batch(step, seed=3).ids[2:]]
    assert sorted(class_names[:5]) == sorted(class_names[5:]) == sorted(e.name for e in prior.examples)


def test_moments_are_those_of_the_picture_and_do_not_depend_on_company(make_folder, small, tmp_path):
    folder = make_folder(4)
    checked = check_pictures(folder, SPEC, resolution_px=32)
    prepared = prepare(checked, small, spec=SPEC, cache=tmp_path / "c", batch=4)
    batch = prepared.batch(0, seed=0)
    by_name = {e.name: e for e in checked.examples}
    for row, name in enumerate(batch.ids):
        example = by_name[name]
        pixels = to_pixels(example.fit.apply(decode(example.path)))
        assert torch.allclose(batch.moments[row], small.encode_pixels(pixels)[0], atol=1e-5)
        alone = check_pictures(example.path, SPEC, resolution_px=32)
        again = prepare(alone, small, spec=SPEC, cache=tmp_path / name, batch=1)
        assert torch.equal(batch.moments[row], again.batch(0, seed=0).moments[0])
    expected_text = small.encode_text(["a photo of sks dog"]).hidden
    assert torch.equal(batch.conditioning.hidden, expected_text.expand(4, -1, -1))


def test_a_batch_depends_on_seed_and_step_only(make_folder, small, tmp_path):
    spec = SPEC.model_copy(update={"flip": True, "caption_dropout": 0.5})
    checked = check_pictures(make_folder(5), spec, resolution_px=32)
    first = prepare(checked, small, spec=spec, cache=tmp_path / "c", batch=2)
    second = prepare(checked, small, spec=spec, cache=tmp_path / "c", batch=2)
    assert first.fingerprint == second.fingerprint
    for step in reversed(range(12)):
        a, b = first.batch(step, seed=4), second.batch(step, seed=4)
        assert a.ids == b.ids
        assert a.captions == b.captions
        assert torch.equal(a.moments, b.moments)
        assert torch.equal(a.conditioning.hidden, b.conditioning.hidden)
    captions = [c for step in range(40) for c in first.batch(step, seed=4).captions]
    assert 20 < captions.count("") < 60


def test_second_preparation_encodes_nothing(make_folder, small, tmp_path):
    checked = check_pictures(make_folder(4), SPEC, resolution_px=32)
    first = prepare(checked, small, spec=SPEC, cache=tmp_path / "c", batch=2)
    assert first.notes == ("cache: 0 reused, 4 rebuilt",)
    before = small.pixels_encoded, len(small.prompts_encoded)
    second = prepare(checked, small, spec=SPEC, cache=tmp_path / "c", batch=2)
    assert second.notes == ("cache: 4 reused, 0 rebuilt",)
    assert (small.pixels_encoded, len(small.prompts_encoded)) == before


def test_progress_counts_up_to_the_work(make_folder, small, tmp_path):
    checked = check_pictures(make_folder(3), SPEC, resolution_px=32)
    seen = []
    prepare(checked, small, spec=SPEC, cache=tmp_path / "c", batch=2, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_long_captions_keep_their_end(make_folder, small, tmp_path):
    """A caption beyond the encoder's window is encoded in several, and short ones are padded to as many."""
    folder = make_folder(2)
    long = " ".join(f"word{i}" for i in range(30))
    (folder / "000.txt").write_text(long, encoding="utf-8")
    (folder / "001.txt").write_text("short", encoding="utf-8")
    checked = check_pictures(folder, SPEC, resolution_px=32)
    prepared = prepare(checked, small, spec=SPEC, cache=tmp_path / "c", batch=2)
    hidden = prepared.batch(0, seed=0).conditioning.hidden
    assert hidden.shape[1] == 3 * (small.max_tokens + 2)


def note(prepared) -> str:
    return prepared.notes[0]


def test_exactly_the_affected_entries_are_rebuilt(make_folder, small, tmp_path):
    folder = make_folder(4)

    def run(spec=SPEC, family=small, resolution_px=32) -> str:
        checked = check_pictures(folder, spec, resolution_px=resolution_px)
        return note(prepare(checked, family, spec=spec, cache=tmp_path / "c", batch=2))

    assert run() == "cache: 0 reused, 4 rebuilt"
    assert run() == "cache: 4 reused, 0 rebuilt"
    picture(50).save(folder / "001.png")
    picture(51).save(folder / "new.png")
    assert run() == "cache: 3 reused, 2 rebuilt (001.png changed, new.png new)"
    (folder / "new.png").unlink()
    assert run() == "cache: 4 reused, 0 rebuilt, 1 removed"
    (folder / "001.png").rename(folder / "renamed.png")
    assert run() == "cache: 4 reused, 0 rebuilt, 1 removed"
    assert run(resolution_px=16) == "cache: 0 reused, 4 rebuilt (4 with other settings or damaged)"
    assert run(resolution_px=32) == "cache: 4 reused, 0 rebuilt"
    assert run(spec=SPEC.model_copy(update={"flip": True})).startswith("cache: 0 reused, 4 rebuilt")
    assert run(spec=SPEC.model_copy(update={"alpha": "black"})).startswith("cache: 0 reused, 4 rebuilt")
    assert run(family=SmallFamily(1)).startswith("cache: 0 reused, 4 rebuilt")
    assert run() == "cache: 4 reused, 0 rebuilt"


def test_a_changed_caption_rebuilds_text_and_no_moments(make_folder, small, tmp_path):
    folder = make_folder(2)
    for spec in (SPEC, SPEC.model_copy(update={"class_noun": "cat"})):
        before = small.pixels_encoded
        checked = check_pictures(folder, spec, resolution_px=32)
        prepared = prepare(checked, small, spec=spec, cache=tmp_path / "c", batch=1)
        assert prepared.batch(0, seed=0).captions == (f"a photo of sks {spec.class_noun}",)
    assert small.pixels_encoded == before
    assert small.prompts_encoded[-1] == "a photo of sks cat"


def test_a_damaged_entry_is_rebuilt_and_said(make_folder, small, tmp_path):
    checked = check_pictures(make_folder(3), SPEC, resolution_px=32)
    first = prepare(checked, small, spec=SPEC, cache=tmp_path / "c", batch=1).batch(0, seed=0)
    entry = sorted((tmp_path / "c" / "moments").rglob("*.safetensors"))[0]
    entry.write_bytes(entry.read_bytes()[:-9])
    again = prepare(checked, small, spec=SPEC, cache=tmp_path / "c", batch=1)
    assert note(again) == "cache: 2 reused, 1 rebuilt (1 damaged)"
    assert torch.equal(again.batch(0, seed=0).moments, first.moments)


def test_same_stem_two_endings_are_two_entries(make_folder, small, tmp_path):
    folder = make_folder(1)
    picture(9).save(folder / "000.webp", lossless=True)
    checked = check_pictures(folder, SPEC, resolution_px=32)
    assert note(prepare(checked, small, spec=SPEC, cache=tmp_path / "c", batch=1)) == "cache: 0 reused, 2 rebuilt"


def test_prior_weight_changes_the_fingerprint_and_a_picture_does(make_folder, small, tmp_path):
    own, others = make_folder(2, name="own"), make_folder(2, name="class", first=9)
    prior = check_class_pictures(others, SPEC, Prior(enabled=True), resolution_px=32)

    def fingerprint(weight=1.0, batch=2) -> str:
        checked = check_pictures(own, SPEC, resolution_px=32)
        weighed = replace(prior, weight=weight)
        return prepare(checked, small, spec=SPEC, cache=tmp_path / "c", prior=weighed, batch=batch).fingerprint

    first = fingerprint()
    assert fingerprint() == first
    assert fingerprint(weight=0.5) != first
    assert fingerprint(batch=1) != first
    picture(77).save(own / "000.png")
    assert fingerprint() != first


def test_masks_weigh_latents(make_folder, small, tmp_path):
    folder = make_folder(2, size=(32, 32))
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 16, 32))
    mask.save(folder / "000-mask.png")
    checked = check_pictures(folder, SPEC, resolution_px=32)
    prepared = prepare(checked, small, spec=SPEC, cache=tmp_path / "c", batch=2)
    batch = prepared.batch(0, seed=0)
    assert batch.mask is not None
    by_name = dict(zip(batch.ids, batch.mask, strict=True))
    expected = torch.zeros(1, 8, 8)
    expected[..., :4] = 1
    assert torch.equal(by_name["000.png"], expected)
    assert torch.equal(by_name["001.png"], torch.ones(1, 8, 8))
    off = SPEC.model_copy(update={"masks": False})
    plain = prepare(check_pictures(folder, off, resolution_px=32), small, spec=off, cache=tmp_path / "c", batch=2)
    assert plain.batch(0, seed=0).mask is None


def test_alpha_as_mask(tmp_path, small):
    folder = tmp_path / "p"
    folder.mkdir()
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 16, 32, 32))
    image.save(folder / "a.png")
    spec = SPEC.model_copy(update={"alpha": "mask"})
    checked = check_pictures(folder, spec, resolution_px=32)
    assert "1 picture has transparency: the loss counts only where opaque" in checked.notes
    mask = prepare(checked, small, spec=spec, cache=tmp_path / "c", batch=1).batch(0, seed=0).mask
    assert mask is not None
    assert mask[0, 0].mean(dim=1).tolist() == [0.0] * 4 + [1.0] * 4


def test_flips_mirror_pixels_and_both_ways_are_drawn(make_folder, small, tmp_path):
    spec = SPEC.model_copy(update={"flip": True})
    checked = check_pictures(make_folder(1, size=(32, 32)), spec, resolution_px=32)
    prepared = prepare(checked, small, spec=spec, cache=tmp_path / "c", batch=1)
    image = decode(checked.examples[0].path)
    plain, mirrored = (small.encode_pixels(to_pixels(p))[0] for p in (image, ImageOps.mirror(image)))
    drawn = [prepared.batch(step, seed=0).moments[0] for step in range(40)]
    turned = sum(torch.allclose(m, mirrored, atol=1e-5) for m in drawn)
    assert turned + sum(torch.allclose(m, plain, atol=1e-5) for m in drawn) == 40
    assert 10 < turned < 30


def test_class_pictures_come_in_the_shape_of_the_batch(make_folder, small, tmp_path):
    wide, high = make_folder(2, name="wide", size=(96, 48)), make_folder(3, name="high", size=(48, 96), first=5)
    prior = check_class_pictures(make_folder(4, name="class", first=9), SPEC, Prior(enabled=True), resolution_px=64)
    checked = check_pictures([wide, high], SPEC, resolution_px=64)
    assert len(checked.shapes) == 2
    prepared = prepare(checked, small, spec=SPEC, cache=tmp_path / "c", prior=prior, batch=2)
    used = []
    for step in range(8):
        batch = prepared.batch(step, seed=0)
        is_wide = batch.ids[0].startswith("wide")
        height, width = batch.moments.shape[-2:]
        assert (width > height) == is_wide
        half = len(batch.ids) // 2
        assert batch.is_prior == (False,) * half + (True,) * half
        used += batch.ids[half:]
    for turn in range(len(used) // 4):
        assert len(set(used[turn * 4 : turn * 4 + 4])) == 4


def test_a_picture_that_changes_after_the_check_is_noticed(make_folder, small, tmp_path):
    folder = make_folder(2)
    checked = check_pictures(folder, SPEC, resolution_px=32)
    picture(99).save(folder / "001.png")
    with pytest.raises(UserError, match=r"001.png: changed since it was checked. Start the run again."):
        prepare(checked, small, spec=SPEC, cache=tmp_path / "c", batch=2)


def test_shuffled_tags_are_drawn_from_the_orders(make_folder, small, tmp_path):
    folder = make_folder(1)
    (folder / "000.txt").write_text("sks dog, red, big, old", encoding="utf-8")
    spec = SPEC.model_copy(update={"shuffle_tags": 4})
    prepared = prepare(check_pictures(folder, spec, resolution_px=32), small, spec=spec, cache=tmp_path / "c", batch=1)
    captions = {prepared.batch(step, seed=0).captions[0] for step in range(60)}
    assert 2 <= len(captions) <= 4
    assert all(caption.startswith("sks dog, ") for caption in captions)


def test_templates_take_turns_where_a_picture_has_no_caption_of_its_own(make_folder, small, tmp_path):
    folder = make_folder(2)
    (folder / "001.txt").write_text("my own words", encoding="utf-8")
    spec = SPEC.model_copy(update={"templates": ("a drawing of {token}",), "missing_captions": "template"})
    prepared = prepare(check_pictures(folder, spec, resolution_px=32), small, spec=spec, cache=tmp_path / "c", batch=2)
    seen: dict[str, set[str]] = {}
    for step in range(20):
        batch = prepared.batch(step, seed=0)
        for name, caption in zip(batch.ids, batch.captions, strict=True):
            seen.setdefault(name, set()).add(caption)
    assert seen == {"000.png": {"a photo of sks dog", "a drawing of sks"}, "001.png": {"my own words"}}


def test_saved_pictures_are_those_the_model_sees(make_folder, tmp_path):
    folder = make_folder(3, size=(50, 40))
    checked = check_pictures(folder, SPEC, resolution_px=32)
    save_pictures(checked, SPEC, tmp_path / "run")
    rows = read_json(tmp_path / "run" / "manifest.json")["pictures"]
    assert [row["name"] for row in rows] == ["000.png", "001.png", "002.png"]
    for row, example in zip(rows, checked.examples, strict=True):
        saved = decode(tmp_path / "run" / row["file"])
        assert saved.tobytes() == example.fit.apply(decode(example.path)).tobytes()
        assert row["caption"] == "a photo of sks dog"
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert (manifest["given"], manifest["exclusions"]) == (3, [])
    assert [(b["size"], b["count"]) for b in manifest["buckets"]] == [([32, 32], 3)]
    save_pictures(checked, SPEC, tmp_path / "few", most=2)
    assert [row["name"] for row in read_json(tmp_path / "few" / "manifest.json")["pictures"]] == ["000.png", "001.png"]


def test_the_fingerprint_is_of_the_data_and_not_of_the_encoders(make_folder, small, tmp_path):
    folder = make_folder(2)

    def fingerprint(family=small, resolution_px=32, **settings) -> str:
        spec = SPEC.model_copy(update=settings)
        checked = check_pictures(folder, spec, resolution_px=resolution_px)
        return prepare(checked, family, spec=spec, cache=tmp_path / "c", batch=1).fingerprint

    first = fingerprint()
    assert fingerprint(family=SmallFamily(1)) == first
    for changed in (
        {"flip": True},
        {"alpha": "black"},
        {"class_noun": "cat"},
        {"repeats": 2},
        {"caption_dropout": 0.1},
    ):
        assert fingerprint(**changed) != first, changed
    assert fingerprint(resolution_px=16) != first


def test_a_cache_without_room_is_found_before_anything_is_encoded(make_folder, small, tmp_path, monkeypatch):
    """The need is counted: with a tenth more than that there is room, with a tenth less there is not."""
    checked = check_pictures(make_folder(6), SPEC, resolution_px=64)
    prepare(checked, small, spec=SPEC, cache=tmp_path / "c", batch=1)
    real = sum(path.stat().st_size for path in (tmp_path / "c").rglob("*.safetensors"))
    disk, before = shutil.disk_usage(tmp_path), small.pixels_encoded
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=int(0.9 * real)))
    with pytest.raises(UserError, match="for moments and captions, and .* LIMNER_CACHE"):
        prepare(checked, small, spec=SPEC, cache=tmp_path / "d", batch=1)
    assert small.pixels_encoded == before
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=int(1.1 * real)))
    prepare(checked, small, spec=SPEC, cache=tmp_path / "d", batch=1)


def test_the_first_batches_come_first_and_the_rest_is_the_same(make_folder, small, tmp_path):
    """What `encode_rest` does afterwards is what would have been done before, entry by entry."""
    spec = SPEC.model_copy(update={"flip": True})
    checked = check_pictures(make_folder(5), spec, resolution_px=32)
    whole = prepare(checked, small, spec=spec, cache=tmp_path / "whole", batch=1)
    early = prepare(checked, small, spec=spec, cache=tmp_path / "early", batch=1, portion=Portion(batches=2, seed=4))
    assert early.fingerprint == whole.fingerprint
    for step in range(2):
        assert torch.equal(early.batch(step, seed=4).moments, whole.batch(step, seed=4).moments)
    with pytest.raises(UserError, match="gone"):
        early.batch(2, seed=4)
    done: list[tuple[int, int]] = []
    assert early.encode_rest is not None
    assert early.encode_rest(lambda *progress: done.append(progress)) == []
    assert done == [(number, 6) for number in range(1, 7)], "of five pictures three, as they are and mirrored"
    assert early.encode_rest is None
    for step in range(2, 10):
        a, b = early.batch(step, seed=4), whole.batch(step, seed=4)
        assert a.ids == b.ids
        assert torch.equal(a.moments, b.moments)
    again = prepare(checked, small, spec=spec, cache=tmp_path / "early", batch=1, portion=Portion(batches=1, seed=4))
    assert again.encode_rest is None, "all is in the cache"
