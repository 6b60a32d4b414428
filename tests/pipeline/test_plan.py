"""What a run needs, traced without weights: against what runs take, on every method, and made to fit."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from limner import run
from limner.conflicts import check_settings
from limner.errors import UserError
from limner.families.source import ASSETS
from limner.fitting import _bound, _measures, budget_of, fit
from limner.forecast import GIB, Forecast, Work, forecast
from limner.machine import Place, place
from limner.prepare.check import Checked
from limner.recipe import changed, load_recipe
from limner.watch import Watch

CPU, CUDA = Place(torch.device("cpu"), torch.float32), Place(torch.device("cuda"), torch.bfloat16)
WITHIN = 0.15
"""How far the peak may be from what is measured."""


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan") / "pictures"
    folder.mkdir()
    for i in range(3):
        Image.effect_noise((64, 64), 60 + 40 * i).convert("RGB").save(folder / f"{i}.png")
    return folder


def planned(pictures: Path, base: Path | str, at: Place = CPU, recipe: str = "lora", **settings: Any) -> Forecast:
    named = {key.replace("__", "."): value for key, value in settings.items()}
    resolved = load_recipe(recipe, {"base": str(base), "pictures.class_noun": "thing", "steps": 200, **named})
    return forecast(resolved, checked_of(pictures, resolved), 200, at)


def checked_of(pictures: Path, recipe: Any) -> Checked:
    return run._check([pictures], recipe, Watch())


def train_bytes(found: Forecast) -> int:
    return next(work for work in found.phases if work.name == "train").needs(found.at.device.type)[0]


@pytest.mark.parametrize("recipe", ["lora", "pivotal"])
def test_slots_share_the_base_and_add_what_learns_and_their_rows(
    pictures: Path, random_base: Path, recipe: str
) -> None:
    whole = {"base": str(random_base), "pictures.class_noun": "thing", "steps": 9, "unload": False}
    resolved = load_recipe(recipe, whole)
    checked = checked_of(pictures, resolved)
    one, two, four = (forecast(resolved, checked, 9, CPU, slots=slots) for slots in (1, 2, 4))
    works = [next(work for work in found.phases if work.name == "train") for found in (one, two, four)]
    assert len({work.weights_bytes for work in works}) == 1
    learning = [work.learning_bytes for work in works]
    assert learning[1] == pytest.approx(2 * learning[0], rel=0.1)
    assert learning[2] == pytest.approx(4 * learning[0], rel=0.1)
    assert 1.2 * works[0].passing_bytes < works[1].passing_bytes < works[2].passing_bytes < 5 * works[0].passing_bytes
    assert one.checkpoint_bytes == four.checkpoint_bytes


@pytest.mark.parametrize("recipe", ["dreambooth-lora", "textual-inversion", "pivotal"])
def test_every_method_is_planned(pictures: Path, random_base: Path, recipe: str) -> None:
    found = planned(pictures, random_base, recipe=recipe)
    names = [work.name for work in found.phases]
    prior = ["class pictures"] if found.recipe.prior.active else []
    assert names == ["load", *prior, "prepare", "train", "save", "draw"]
    assert found.peak_bytes == max(work.needs("cpu")[0] for work in found.phases)
    train = next(work for work in found.phases if work.name == "train")
    assert train.passing_bytes > 0
    assert train.learning_bytes > 0
    assert found.disk_bytes > found.checkpoint_bytes > 0


def test_a_refiner_is_counted_where_it_draws(pictures: Path, random_xl: Path, random_refiner: Path) -> None:
    def by_name(base: Path, **settings: Any) -> dict[str, Work]:
        return {work.name: work for work in planned(pictures, base, recipe="lora", unload=False, **settings).phases}

    previews = {"generation__num_inference_steps": 10, "preview__every_steps": 100}
    refined = by_name(random_xl, **previews, generation__refiner=str(random_refiner))
    never_drawn = by_name(random_refiner)
    base, refiner = refined["load"].weights_bytes, never_drawn["load"].weights_bytes
    both = pytest.approx(base + refiner, rel=1e-3)
    held = {name: work.weights_bytes for name, work in refined.items()}
    assert 0 < held.pop("prepare") < base, "the UNet is not there yet"
    assert held == {**dict.fromkeys(("load", "train", "preview", "save"), base), "draw": both}
    assert [times for _, times in refined["preview"].costs] == [20, 2]
    (_, first), (_, second), (_, decoded) = refined["draw"].costs
    assert (first, second) == (8 * decoded, 2 * decoded)

    assert "draw" not in never_drawn
    begun = by_name(random_refiner, prior__enabled=True, generation__begun_by=str(random_xl))
    held = {name: work.weights_bytes for name, work in begun.items()}
    while_both = dict.fromkeys(("load", "class pictures", "prepare", "draw"), both)
    assert held == {**while_both, "train": refiner, "save": refiner}
    assert begun["train"].learning_bytes == pytest.approx(never_drawn["train"].learning_bytes, rel=1e-3)


def test_settings_move_the_peak_as_they_should(pictures: Path, random_base: Path) -> None:
    lora = train_bytes(planned(pictures, random_base, batch=8))
    shares = [
        train_bytes(planned(pictures, random_base, batch=8, gradient_checkpointing=n)) for n in (0.33, 0.67, True)
    ]
    assert lora > shares[0] > shares[1] >= shares[2]
    assert train_bytes(planned(pictures, random_base, batch=4, accumulate=2)) < lora
    full = planned(pictures, random_base, recipe="dreambooth")
    fused = {"optimizer__kind": "adafactor", "optimizer__fused_backward": True, "optimizer__max_grad_norm": 0}
    small = planned(pictures, random_base, recipe="dreambooth", **fused)
    assert train_bytes(small) < train_bytes(full)
    assert small.checkpoint_bytes < full.checkpoint_bytes


def test_the_base_is_counted_as_it_lies(pictures: Path, random_base: Path) -> None:
    """In fewer bits while it trains and as it is for the comparison; what is on the host is not on the GPU."""

    def by_name(**settings: Any) -> dict[str, Work]:
        return {work.name: work for work in planned(pictures, random_base, CUDA, **settings).phases}

    whole = {"unload": False}
    plain, packed, away = (
        by_name(**whole, **more) for more in ({}, {"base_storage": "nf4"}, {"base_storage": "nf4", "offload": True})
    )
    held = [works["train"].weights_bytes for works in (plain, packed, away)]
    assert held[2] < held[1] < 0.7 * held[0]
    assert {works["draw"].weights_bytes for works in (plain, packed, away)} == {held[0]}
    host = [works["train"].host_bytes for works in (plain, packed, away)]
    assert host[0] == host[1]
    assert host[2] - host[1] == held[1] - held[2]
    with pytest.raises(UserError, match="offload=true: brings the base's layers from the host's memory to a GPU"):
        planned(pictures, random_base, CPU, offload=True)


def test_full_size_without_a_gpu_or_weights(pictures: Path, root: Path) -> None:
    """SD 1.5 from its configurations alone, for a card that is not here: parameters and operations as published."""
    base = root / "src/limner/assets/sd15"
    found = planned(pictures, base, CUDA, resolution=256, pictures__max_upscale=9, unload=False)
    load, *_, train = (work for work in found.phases if work.name in ("load", "train"))
    assert load.weights_bytes == pytest.approx(2 * 1_066_235_307, rel=1e-3)
    flops = sum(train.costs[0][0].flops.values())
    assert flops == pytest.approx(0.37e12, rel=0.03)  # forward 0.181, backward to the activations 0.19 TFLOP
    assert 2.5 * GIB < found.peak_bytes < 4 * GIB


def test_full_fine_tuning_keeps_the_base_on_the_host(pictures: Path, random_base: Path) -> None:
    found = planned(pictures, random_base, CUDA, recipe="dreambooth")
    train = next(work for work in found.phases if work.name == "train")
    unet = sum(p.numel() for p in _unet(random_base).parameters())
    copied = found.checkpoint_bytes  # this small, a checkpoint's state is copied while the training goes on
    assert train.host_bytes == pytest.approx(2 * unet + copied, rel=0.1)


def _unet(base: Path) -> torch.nn.Module:
    from limner.families.load import sketch

    return sketch(str(base), dtype=torch.float32).unet


@pytest.mark.slow
def test_the_peak_is_right_within_15_percent(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh process trains, and the kernel says what it held; other methods: benchmarks/plan_accuracy.py."""
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))  # what is cached already takes no memory
    settings = {"prior.count": 2, "base": "tiny", "steps": 3, "device": "cpu", "pictures.class_noun": "thing"}
    told = run.plan(pictures, recipe="dreambooth", settings=settings).facts
    words = [f"{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "limner", "train", str(pictures), "--recipe", "dreambooth", *words]
    subprocess.run([*command, "--run", str(tmp_path / "run")], check=True, env=os.environ)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    measured = {row["name"]: row["peak_memory_gib"] for row in log if row["event"] == "phase"}
    measured["train"] = max(measured["train"], measured.get("probe", 0))
    for phase in told["phases"]:
        if phase["phase"] in ("load", "prepare", "train"):
            assert phase["memory_gib"] == pytest.approx(measured[phase["phase"]], rel=WITHIN), phase["phase"]


def fitted(pictures: Path, base: Path, budget: int, at: Place = CPU, recipe: str = "lora", **settings: Any):
    first = planned(pictures, base, at, recipe, **settings)
    return first, fit(first, checked_of(pictures, first.recipe), 200, budget)


def test_fit_stops_at_the_first_measure_that_is_enough(pictures: Path, random_base: Path) -> None:
    settings = {"batch": 4, "adapter__targets": "all", "generation__batch": 1}
    first, mild = fitted(pictures, random_base, 0, **settings)
    assert mild.chosen["gradient_checkpointing"]
    assert mild.forecast.recipe.batch * mild.forecast.recipe.accumulate == 4
    assert mild.forecast.peak_bytes < first.peak_bytes
    assert fit(first, checked_of(pictures, first.recipe), 200, first.peak_bytes).chosen == {}


def measures(at: Place, phase: str = "train", **settings: Any) -> list[dict[str, Any]]:
    recipe = load_recipe(None, {key.replace("__", "."): value for key, value in settings.items()})
    return list(_measures(recipe, Forecast(recipe, at, (Work(phase, 1, 1, 1, 0),), 0, 0)))


def test_the_measures_come_in_their_order() -> None:
    unload, split = {"unload": True}, {"batch": 2, "accumulate": 2}
    checkpointing = [{"gradient_checkpointing": share} for share in (0.33, 0.67, True)]
    byte, host, half_a_byte = {"base_storage": "int8"}, {"offload": True}, {"base_storage": "nf4"}
    lean = {"unload": True, "gradient_checkpointing": True}
    assert measures(CPU, batch=4) == [*checkpointing, split, byte]
    assert measures(CPU, batch=4, preview__every_steps=9) == [unload, *checkpointing, split, byte]
    assert measures(CPU, batch=4, **lean) == [split, byte]
    assert measures(CPU, unload=True, gradient_checkpointing=0.33) == [*checkpointing[1:], byte]
    assert measures(CPU, **lean, base_storage="int8") == [half_a_byte]
    assert measures(CPU, **lean, base_storage="nf4") == []
    assert measures(CUDA, **lean)[:2] == [byte, host]
    assert measures(CUDA, **lean, base_storage="int8", optimizer__kind="lion") == [host, half_a_byte]
    assert measures(CPU, **lean, adapter__kind="peft", adapter__method="olora") == []
    fused = {"optimizer.kind": "adafactor", "optimizer.fused_backward": True, "optimizer.max_grad_norm": 0.0}
    assert measures(CPU, adapter__kind="full", unload=True) == [*checkpointing, {**fused, "batch": 1, "accumulate": 1}]
    assert {"optimizer.kind": "adamw8bit"} in measures(CUDA)
    assert measures(CPU, "draw", generation__batch=8) == [{"generation.batch": 4}]
    assert measures(CPU, "load") == [byte]
    fits = {**fused, "batch": 1, "pictures.class_noun": "thing"}
    check_settings(changed(load_recipe(None, {"adapter.kind": "full"}), fits))


@pytest.mark.parametrize(("said", "gib"), [("8GB", 8), ("8 GiB", 8), ("7.5", 7.5), ("24g", 24)])
def test_an_amount_of_memory(said: str, gib: float) -> None:
    assert budget_of(load_recipe(None, {"fit": said}), CPU) == gib * GIB


def test_what_is_no_amount_is_refused() -> None:
    with pytest.raises(UserError, match="fit='lots': is no amount of memory. Use true"):
        budget_of(load_recipe(None, {"fit": "lots"}), CPU)


def test_what_never_fits_is_refused_before_anything_is_loaded(
    pictures: Path, random_base: Path, tmp_path: Path
) -> None:
    settings = {"base": str(random_base), "steps": 2, "device": "cpu", "fit": "0.1GB"}
    with pytest.raises(
        UserError, match=r"^needs about 0\.\d+ GiB .*fit=0.1GB allows 0.1 GiB. The least that"
    ) as caught:
        run.train(pictures, settings={**settings, "pictures.class_noun": "thing"}, run=tmp_path / "run")
    assert "smaller resolution" in caught.value.hint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("free_gib", [1, 64])
def test_on_the_cpu_the_probe_is_for_memory_that_may_not_do(
    pictures: Path, random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_gib: int
) -> None:
    monkeypatch.setattr("limner.machine.free_memory_bytes", lambda _: free_gib * GIB)
    settings = {"base": str(random_base), "steps": 2, "device": "cpu", "pictures.class_noun": "thing"}
    folder = run.train(pictures, settings=settings, run=tmp_path / "run")
    assert ("probe" in [row["name"] for row in folder.read_log("phase")]) == (free_gib == 1)


def test_only_what_has_a_bound_is_sure_of_its_memory(pictures: Path, random_base: Path) -> None:
    def bound(recipe: str = "lora", slots: int = 1, **settings: Any) -> int | None:
        named = {key.replace("__", "."): value for key, value in settings.items()}
        usual = {"base": str(random_base), "pictures.class_noun": "thing", "device": "cpu"}
        resolved = load_recipe(recipe, {**usual, **named})
        return _bound(resolved, checked_of(pictures, resolved), slots)

    one = bound()
    assert one is not None
    assert one > 2 * GIB
    assert bound(batch=3) - one == 2 * 64 * 64 * 12288 * 4
    assert bound(adapter__rank=64) > one > bound(precision="bfloat16")
    assert bound("textual-inversion", optimizer__warmup_steps=0) is not None
    assert bound("dreambooth") is None
    assert bound("dreambooth-lora") is None  # may draw class pictures
    assert bound(preview__every_steps=1) is None
    assert bound(adapter__kind="peft", adapter__method="dora") is None


@pytest.mark.slow
def test_the_bound_is_above_the_plan_of_a_real_architecture(tmp_path: Path) -> None:
    base, picture, side = tmp_path / "base", tmp_path / "pictures", 512
    shutil.copytree(ASSETS / "sd15", base)
    (base / "weights").mkdir()
    with (base / "weights" / "all.safetensors").open("wb") as file:
        file.truncate(2_132_471_174)  # a plan reads no weights, and the bound their size: here that of float16
    picture.mkdir()
    Image.effect_noise((side, side), 90).convert("RGB").save(picture / "0.png")
    for settings in ({"adapter.rank": 4}, {"adapter.rank": 64, "adapter.targets": "all"}):
        named = {"base": str(base), "pictures.class_noun": "thing", "resolution": side, "precision": "bfloat16",
                 "generation.batch": 1, "device": "cpu", **settings}  # fmt: skip
        recipe = load_recipe("lora", named)
        checked = checked_of(picture, recipe)
        bound = _bound(recipe, checked, 1)
        assert bound is not None
        assert bound > train_bytes(forecast(recipe, checked, 200, Place(torch.device("cpu"), torch.bfloat16)))


def test_what_was_made_to_fit_runs_and_resumes_as_written(pictures: Path, random_base: Path, tmp_path: Path) -> None:
    settings = {"base": str(random_base), "steps": 2, "device": "cpu", "batch": 32, "pictures.class_noun": "thing",
                "generation.batch": 1, "adapter.targets": "all"}  # fmt: skip
    first = planned(pictures, random_base, **{k.replace(".", "__"): v for k, v in settings.items() if k != "base"})
    said: list[str] = []

    class Listening(Watch):
        def say(self, text: str) -> None:
            said.append(text)

    budget = f"{(first.peak_bytes - 4 * 2**20) / GIB:.4f}GB"
    folder = run.train(pictures, settings={**settings, "fit": budget}, run=tmp_path / "run", watch=Listening())
    (line,) = [text for text in said if text.startswith("fit=")]
    assert "gradient_checkpointing=" in line
    assert "-> about 0." in line
    written = load_recipe(folder.recipe)
    assert written.fit is False
    assert written.gradient_checkpointing
    assert written.batch * written.accumulate == 32
    run.resume(folder.path, settings={"steps": 3})
    assert [row["step"] for row in folder.read_log("step")] == [1, 2, 3]


def test_a_gpu_that_is_not_here_is_planned_for(pictures: Path, random_base: Path) -> None:
    settings = {"base": str(random_base), "device": "cuda", "pictures.class_noun": "thing", "fit": "8GB"}
    told = run.plan(pictures, settings=settings).facts
    assert told["fits"]
    assert told["device"] == "cuda:0"
    assert told["fit"] == {}
    assert {row["phase"] for row in told["phases"]} == {"load", "prepare", "train", "save", "draw"}
    if not torch.cuda.is_available():
        assert all(row["seconds"] is None for row in told["phases"])
        assert run.plan(pictures, settings={**settings, "fit": True}).facts["fits"] is None
        with pytest.raises(UserError, match="torch finds no CUDA GPU"):
            place("cuda", "auto")
        asked = place("cuda", "bfloat16", must_be_here=False)
        assert (asked.dtype, asked.note) == (torch.bfloat16, "")


CAPPED = """
import resource, sys
from pathlib import Path
from limner import run
from limner.errors import UserError
import diffusers, limner.forecast
from limner.families.load import load
load("tiny", dtype=__import__("torch").float32, device="cpu")
size = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (int(size.split()[1]) * 1024 + 300 * 2**20,) * 2)
try:
    run.train(sys.argv[1], settings={"base": "tiny", "batch": 192, "steps": 2, "device": "cpu", "fit": "off",
                                     "pictures.class_noun": "thing"}, run=sys.argv[2])
except UserError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="caps the address space as Linux does")
def test_memory_that_runs_out_in_the_probe_is_one_line(pictures: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", CAPPED, str(pictures), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    # what it needs is said where enough memory comes back to find that out, which is the C library's to decide
    # which measure helps is counted from shapes; it is the first that makes the run smaller
    first = r"gradient_checkpointing=0\.33 -> about \d+\.\d+ GiB"
    helps = rf"(: the run needs about \d+\.\d+ GiB\. Set {first}|\. Ask limner plan .* fit=true\.)"
    assert re.fullmatch(rf"Out of memory on cpu{helps}\n", done.stdout), done.stdout + done.stderr
    assert not (tmp_path / "run").exists()
