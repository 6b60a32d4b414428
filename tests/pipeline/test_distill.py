"""Few-step adapters, from the verb to the picture: taught by a base or a subject on it, their files say how to draw."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import limner
from limner import run as runs
from limner.adapter_file import read_adapter
from limner.distilling import distill, plan_distill
from limner.errors import UserError
from limner.families.source import ASSETS
from limner.families.weights import read_header
from limner.generate.few_steps import FewSteps
from limner.metrics.ladder import ARMS
from limner.rundir import RunDir, read_json
from limner.sharing import export
from limner.watch import Watch

PICTURES = ASSETS / "demo" / "critter"
FEW: dict[str, Any] = {
    "steps": 2, "batch": 2, "learning_rate": 1e-2, "adapter.rank": 4, "adapter.save_precision": "float32",
    "checkpoint.every_steps": 1, "objective.phases": 1,
}  # fmt: skip
DRAWN: dict[str, Any] = {"distill.words": ["critter"], "distill.images": 4, "generation.num_inference_steps": 2}
SUBJECT: dict[str, Any] = {
    "steps": 2, "batch": 2, "learning_rate": 1e-2, "pictures.class_noun": "critter", "prior.enabled": False,
    "adapter.text_encoder": True, "generation.num_inference_steps": 2, "evaluation.images_per_prompt": 1,
    "evaluation.prompts": ["a {subject}"], "evaluation.class_prompts": [],
    "evaluation.other_prompts": [],
}  # fmt: skip


class Heard(Watch):
    """A watch that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def lcm(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Distil the random base from pictures that it draws itself."""
    place = tmp_path_factory.mktemp("lcm") / "run"
    return distill(str(random_base), settings={**FEW, **DRAWN}, run=place)


@pytest.fixture(scope="module")
def dog(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Train a subject: a LoRA on UNet and text encoder."""
    place = tmp_path_factory.mktemp("dog") / "run"
    return limner.train(PICTURES, run=place, settings={**SUBJECT, "base": str(random_base)})


@pytest.fixture(scope="module")
def few_dog(dog: RunDir, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Distil the subject on its base."""
    settings = {**FEW, "distill.images": 4, "evaluation.inference_steps": [1, 2]}
    return distill(dog.path, settings=settings, run=tmp_path_factory.mktemp("few") / "run")


@pytest.fixture(scope="module")
def pcm(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Distil the random base in two phases."""
    settings = {**FEW, **DRAWN, "steps": 1, "objective.phases": 2}
    return distill(str(random_base), settings=settings, run=tmp_path_factory.mktemp("pcm") / "run")


def pictures_of(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(folder.glob("*.png"))]


def test_the_base_draws_what_it_teaches_with(lcm: RunDir) -> None:
    (drawn,) = (Path(path) for path in read_json(lcm.provenance)["pictures"])
    rows = [json.loads(line) for line in (drawn / "metadata.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows][:2] == ["a photo of a critter", "a picture of a critter"]
    assert len(list(drawn.glob("*.png"))) == len(rows) == 4
    assert all(bool(t.any()) for name, t in load_file(lcm.adapter).items() if "lora_B" in name)


def test_stopped_and_resumed_without_its_pictures_it_learns_the_same(
    lcm: RunDir, random_base: Path, tmp_path: Path
) -> None:
    begun = distill(str(random_base), settings={**FEW, **DRAWN, "steps": 1}, run=tmp_path / "begun")
    shutil.rmtree(read_json(begun.provenance)["pictures"][0])
    runs.resume(begun.path, settings={"steps": 2})
    first, second = load_file(lcm.adapter), load_file(begun.adapter)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_the_file_says_how_to_draw_with_it(lcm: RunDir, layout: str, tmp_path: Path) -> None:
    (file,) = export(lcm.path, to=layout, out=tmp_path / "lcm.safetensors")
    assert read_adapter(file)[0].few_steps == FewSteps(kind="lcm", scheduler="lcm", steps=4, guidance_range=(1, 2))
    hint = read_header(file).metadata["modelspec.usage_hint"]
    assert hint == "LCM sampler, 4 to 8 steps, CFG scale 1 to 2"


def test_it_is_drawn_with_as_its_file_says(lcm: RunDir, random_base: Path, tmp_path: Path) -> None:
    heard = Heard()
    asked: dict[str, Any] = {"seeds": [1], "adapters": [(lcm.adapter, 1.0)], "watch": heard}
    plain = limner.generate(str(random_base), ["a critter"], out=tmp_path / "plain", **asked)
    assert f"{lcm.adapter} is an LCM-LoRA: LCM scheduler, 4 steps, guidance 1" in heard.lines
    spelt = limner.generate(
        str(random_base), ["a critter"], out=tmp_path / "spelt", **asked,
        settings={"generation.scheduler": "lcm", "generation.num_inference_steps": 4, "generation.guidance_scale": 1},
    )  # fmt: skip
    assert pictures_of(plain) == pictures_of(spelt)
    asked["adapters"] = [(lcm.adapter, 0.0)]
    base = limner.generate(str(random_base), ["a critter"], out=tmp_path / "base", **asked)
    assert read_json(base / "manifest.json")["scheduler"] == "ddim"


@pytest.mark.parametrize(
    ("settings", "force", "guidance", "says"),
    [
        ({"generation.guidance_scale": 7.5}, False, 1.5,
         "This is an LCM-LoRA: guidance 7.5 will blur; using 1.5. Pass --force-guidance to keep 7.5."),
        ({"generation.guidance_scale": 7.5}, True, 7.5, "guidance 7.5 will blur; kept, as --force-guidance says."),
        ({"generation.guidance_scale": 1.8}, False, 1.8, "LCM scheduler, 4 steps, guidance 1.8"),
        ({"generation.num_inference_steps": 25}, False, 1.0, "25 steps: an LCM-LoRA is made for 4 to 8"),
        ({"generation.scheduler": "tcd"}, False, 1.0, "TCD scheduler, 4 steps, guidance 1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_it_is_said(
    lcm: RunDir, tmp_path: Path, settings: dict[str, Any], force: bool, guidance: float, says: str
) -> None:
    heard = Heard()
    drawn = limner.generate(lcm.path, ["a critter"], seeds=[1], out=tmp_path / "out", settings=settings, watch=heard,
                            force_guidance=force)  # fmt: skip
    assert any(says in line for line in heard.lines), heard.lines
    assert read_json(drawn / "manifest.json")["guidance_scale"] == guidance


def test_of_phases_it_takes_just_so_many_steps(pcm: RunDir, tmp_path: Path) -> None:
    assert read_adapter(pcm.adapter)[0].few_steps == FewSteps(kind="pcm", scheduler="tcd", steps=2)
    assert read_header(pcm.adapter).metadata["modelspec.usage_hint"] == "TCD sampler, 2 steps, CFG scale 1 to 2"
    for steps, says in ((2, "is a PCM-LoRA: TCD scheduler, 2 steps, guidance 1"),
                        (4, "4 steps: a PCM-LoRA jumps over 2 phases, and is made for 2 steps")):  # fmt: skip
        limner.generate(pcm.path, ["a critter"], seeds=[1], out=tmp_path / f"{steps}", watch=(heard := Heard()),
                        settings={"generation.num_inference_steps": steps})  # fmt: skip
        assert any(says in line for line in heard.lines), heard.lines


BAD: dict[str, tuple[str, str]] = {
    "a sampler that cannot": ("generate {lcm} --prompt x generation.scheduler=euler",
                              r"scheduler is Euler; LCM-LoRA needs LCM .*Leave generation.scheduler out"),
    "what to avoid without guidance": ("generate {lcm} --prompt x generation.negative_prompt=blurry",
                                       "negative_prompt: has no effect, because generation.guidance_scale is 1"),
    "two of them": ("generate {base} --prompt x --adapter {lcm}/adapter.safetensors --adapter {lcm}",
                    "are both few-step adapters. Use one"),
    "force without one": ("generate {base} --prompt x --force-guidance", "--force-guidance: there is no few-step"),
    "a header from the future": ("generate {base} --prompt x --adapter {bad}/future.safetensors",
                                 "its header says few_steps.kind='dmd', which this version does not know"),
    "the base twice": ("distill {base} base=tiny distill.words=['dog']", "base=tiny: the base is named already"),
    "nothing to draw": ("distill {base}", r"nothing says what the base shall draw. Give .*distill.words="),
    "no pictures at all": ("distill {base} distill.words=['dog'] distill.images=0", "distill.images=0: no pictures"),
    "prompts that are not there": ("distill {base} distill.prompts={bad}/none.txt", "prompts=.*there is no such file"),
    "prompts that are none": ("distill {base} distill.prompts={bad}/empty.txt", "empty.txt: holds no prompt"),
    "pictures and prompts": ("distill {base} {pictures} distill.prompts={bad}/empty.txt pictures.class_noun=x",
                             "distill.prompts: has no effect, because pictures are given"),
    "pictures and a number": ("distill {base} {pictures} distill.images=3", "distill.images: has no effect"),
    "pictures without captions": ("distill {base} {pictures}", "5 of 5 pictures have no caption .*pictures.caption="),
    "a recipe of something else": ("distill {base} distill.words=['dog'] --recipe lora",
                                   "objective.kind is denoising, which teaches no few steps. Use --recipe few-step"),
    "a few-step run again": ("distill {lcm}", "is a few-step adapter itself"),
    "a run that is not trained": ("distill {bad}/untrained", "has no adapter yet"),
    "a subject that is not there": ("train {pictures} --recipe few-step base={base} pictures.class_noun=x "
                                    "distill.adapter={bad}/none", "distill.adapter=.*: there is no such run or file"),
    "distilling without learning to": ("train {pictures} --recipe lora base={base} pictures.class_noun=x steps=1 "
                                       "distill.inference_steps=2", "has no effect, because objective.kind is denois"),
    "phases and another number of steps": (
        "distill {base} distill.words=['dog'] objective.phases=2 distill.inference_steps=4",
        "distill.inference_steps: has no effect, because objective.phases=2 says how many steps are drawn"),
    "as many phases as solver steps": ("distill {base} distill.words=['dog'] objective.phases=4 "
                                       "objective.solver_steps=4", "phases = 4 .*must be fewer than solver_steps, 4"),
    "more steps than few": ("distill {base} distill.words=['dog'] distill.inference_steps=20", "equal to 8"),
}  # fmt: skip


@pytest.fixture(scope="module")
def bad(lcm: RunDir, dog: RunDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fill a folder with what cannot be used."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty.txt").write_text("\n\n", encoding="utf-8")
    (folder / "untrained").mkdir()
    shutil.copy(dog.recipe, folder / "untrained")
    metadata = read_header(lcm.adapter).metadata
    about = json.loads(metadata["limner"])
    about["few_steps"]["kind"] = "dmd"
    save_file(load_file(lcm.adapter), folder / "future.safetensors", {**metadata, "limner": json.dumps(about)})
    return folder


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_one_line(
    name: str, lcm: RunDir, bad: Path, random_base: Path, run_limner: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    words, says = BAD[name]
    asked = words.format(lcm=lcm.path, bad=bad, base=random_base, pictures=PICTURES).split(" ")
    code, out, err = run_limner(*asked, "--json")
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1, err
    with pytest.raises(UserError, match=says):
        raise UserError(err, "")
    assert not list(tmp_path.glob("*/*"))


def test_the_subject_stays_attached_and_comes_along(
    few_dog: RunDir, dog: RunDir, random_base: Path, tmp_path: Path
) -> None:
    (drawn,) = (Path(path) for path in read_json(few_dog.provenance)["pictures"])
    captions = {json.loads(line)["text"] for line in (drawn / "metadata.jsonl").read_text().splitlines()}
    assert "a photo of a sks critter" in captions
    assert read_json(few_dog.provenance)["base"]["identity"] != read_json(dog.provenance)["base"]["identity"]
    assert "unet.conv_in" not in {name.rpartition(".lora")[0] for name in load_file(dog.adapter)}
    asked: dict[str, Any] = {"seeds": [1]}
    own = limner.generate(few_dog.path, ["a sks critter"], out=tmp_path / "own", **asked)
    both = [(dog.path, 1.0), (few_dog.adapter, 1.0)]
    beside = limner.generate(str(random_base), ["a sks critter"], out=tmp_path / "beside", adapters=both, **asked)
    assert pictures_of(own) == pictures_of(beside)
    few = limner.generate(str(random_base), ["a sks critter"], out=tmp_path / "few", adapters=both[1:], **asked)
    assert pictures_of(own) != pictures_of(few)


def test_the_subject_is_compared_with_its_own_pictures(few_dog: RunDir, dog: RunDir) -> None:
    limner.evaluate(few_dog.path)
    base, tuned = (read_json(few_dog.images / side / "manifest.json") for side in ("base", "tuned"))
    assert (base["scheduler"], base["num_inference_steps"], base["guidance_scale"]) == ("ddim", 2, 5.0)
    assert (tuned["scheduler"], tuned["num_inference_steps"], tuned["guidance_scale"]) == ("lcm", 4, 1.0)
    assert read_json(few_dog.scores)["design"]["training_pictures"] == len(list(dog.pictures.glob("*.png")))
    arms = ["base", "few-steps", "subject", "subject-few-steps"]
    assert {place.name for place in few_dog.ladder.iterdir()} == {f"{arm}x{n}" for arm in arms for n in (1, 2)}
    drawn = {arm: read_json(few_dog.ladder / f"{arm}x2" / "manifest.json")["scheduler"] for arm in arms}
    assert drawn == {"base": "ddim", "few-steps": "lcm", "subject": "ddim", "subject-few-steps": "lcm"}
    first = "subject-00-00.png"
    assert (few_dog.ladder / "basex2" / first).read_bytes() == (few_dog.images / "base" / first).read_bytes()
    assert len({(few_dog.ladder / f"{arm}x2" / first).read_bytes() for arm in arms}) == 4
    rungs = read_json(few_dog.ladder_scores)["rungs"]
    assert list(dict.fromkeys(rung["place"]["arm"] for rung in rungs)) == [*ARMS]
    page = limner.report(few_dog.path).read_text(encoding="utf-8")
    assert "subject, few steps" in page
    assert "In 2 steps, as a share of what the base has in 2" in page


def test_two_adapters_add_up(lcm: RunDir, dog: RunDir, family: Any) -> None:
    from limner.adapter_set import AdapterSet

    acting = AdapterSet(family)
    names = [acting.load(lcm.adapter, name="lcm"), acting.load(dog.adapter, name="dog")]
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    weight = family.unet.get_submodule(layer).weight
    before, deltas = weight.clone(), []
    for name, strength in zip(names, (1.0, 0.8), strict=True):
        acting.set({name: strength})
        acting.merge()
        deltas.append(weight - before)
        acting.set({})
    acting.set({"lcm": 1.0, "dog": 0.8})
    acting.merge()
    assert bool(deltas[0].any())
    assert bool(deltas[1].any())
    assert torch.allclose(weight - before, deltas[0] + deltas[1], atol=1e-6)
    acting.set({})
    assert torch.equal(weight, before)


def test_it_is_planned_before_anything_is_drawn(random_base: Path) -> None:
    told = plan_distill(str(random_base), settings={**FEW, **DRAWN, "distill.images": 100})
    phases = [row.split()[0] for row in told.lines if row[:1].isalpha()]
    assert phases.index("pictures") < phases.index("prepare") < phases.index("train")


@pytest.mark.parametrize("kind", ["lcm", "pcm"])
def test_stock_diffusers_draws_the_same_with_it(
    kind: str, random_base: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    import diffusers
    from PIL import Image

    from limner.seeds import seed_of

    folder: RunDir = request.getfixturevalue(kind)
    sampler, steps = {"lcm": (diffusers.LCMScheduler, 4), "pcm": (diffusers.TCDScheduler, 2)}[kind]
    for layout in ("diffusers", "kohya"):
        (file,) = export(folder.path, to=layout, out=tmp_path / f"{layout}.safetensors")
        ours = limner.generate(
            str(random_base), ["a critter"], seeds=[1], adapters=[(file, 1.0)], out=tmp_path / layout
        )
        seed = read_json(ours / "manifest.json")["images"][0]["seed"]
        pipe: Any = diffusers.StableDiffusionPipeline.from_pretrained(random_base, safety_checker=None)
        pipe.scheduler = sampler.from_config(pipe.scheduler.config)
        pipe.load_lora_weights(file.parent, weight_name=file.name)
        noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
        theirs = pipe(
            "a critter", latents=noise, num_inference_steps=steps, guidance_scale=1.0,
            generator=torch.Generator().manual_seed(seed_of("steps", seed)),
        ).images[0]  # fmt: skip
        own = np.asarray(Image.open(next(ours.glob("*.png"))), int)
        assert np.abs(own - np.asarray(theirs, int)).max() <= 2
