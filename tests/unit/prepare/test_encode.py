"""Cached moments and text: right when something changes, reused when nothing does."""

import torch

from limner.pictures.decode import decode
from limner.pictures.spec import Pictures, Prior
from limner.prepare.check import check_class_pictures, check_pictures
from limner.prepare.encode import prepare, to_pixels

SPEC = Pictures(class_noun="dog")


def test_rows_are_instance_first_then_as_many_class_rows(make_folder, small, tmp_path):
    own, others = make_folder(3, name="own"), make_folder(5, name="class", first=10)
    checked = check_pictures(own, SPEC, resolution_px=32)
    prior = check_class_pictures(others, SPEC, Prior(enabled=True), resolution_px=32, instance=own)
    prepared = prepare(checked, small, spec=SPEC, cache=tmp_path / "c", prior=prior, prior_weight=0.5, batch=2)
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
        expected = small.encode_pixels(to_pixels(example.fit.apply(decode(example.path))))[0]
        assert torch.equal(batch.moments[row], expected)
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
