"""`limner measure` on real runs: the base stays as it was, merged draws as unmerged, a stop keeps what is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import limner
from limner.errors import UserError
from limner.families.family import Family
from limner.families.source import ASSETS
from limner.metrics.inference import Inference, read_inference
from limner.result import attach_result, merge_result
from limner.rundir import RunDir
from limner.watch import Watch

QUICK = {"inference_steps": [1, 2], "batches": [1, 2], "seconds": 0.5}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"adapter.kind": "peft", "adapter.method": "dora", "adapter.text_encoder": False},
    "pivotal": {"adapter.kind": "pivotal", "pictures.token": "<new>"},
    "words": {"adapter.kind": "textual_inversion", "pictures.token": "<new>"},
    "full": {"adapter.kind": "full"},
}
STATES = {"full": ["base", "whole"], "words": ["base", "unmerged"]}


@pytest.fixture(scope="module")
def runs(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDir]:
    folder = tmp_path_factory.mktemp("measured")
    own = {"base": str(random_base), "steps": 1, "prior.enabled": False, "learning_rate": 0.05, "batch": 1}
    return {
        name: limner.train(ASSETS / "demo" / "critter", recipe="demo", settings={**own, **settings}, run=folder / name)
        for name, settings in METHODS.items()
    }


def read(run: RunDir) -> Inference:
    found = read_inference(run.inference)
    assert found is not None
    return found


def prediction(family: Family) -> torch.Tensor:
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return family.predict(noise, torch.tensor([300, 700]), family.encode_text(["a <new> critter", "x"]))


@pytest.mark.parametrize("method", ["lora", "dora", "pivotal"])
def test_merged_for_good_predicts_as_attached_and_leaves_the_base_alone(
    runs: dict[str, RunDir], family: Family, method: str
) -> None:
    before, weights = prediction(family), [one.clone() for one in family.weights()]
    twin, merged = family.twin(), merge_result(family, runs[method])
    assert merged is not None
    attached = attach_result(twin, runs[method])
    assert (prediction(twin) - before).abs().max() > 1e-3, "it learned something"
    torch.testing.assert_close(prediction(merged), prediction(twin), rtol=1e-4, atol=1e-5)
    assert not any(module._forward_hooks for module in merged.unet.modules())
    assert merged.vae.post_quant_conv.weight is family.vae.post_quant_conv.weight
    assert torch.equal(prediction(family), before)
    assert all(torch.equal(now, then) for now, then in zip(family.weights(), weights, strict=True))
    for one in attached:
        one.detach()
    assert torch.equal(prediction(twin), before)


def test_a_run_is_measured_from_the_command_line(runs: dict[str, RunDir], run_limner: Any) -> None:
    run = runs["lora"]
    settings = [f"{name}={json.dumps(value)}" for name, value in QUICK.items()]
    code, out, err = run_limner("measure", run.path, *settings, "--json")
    assert code == 0, err
    assert json.loads(out) == {"inference": str(run.inference)}
    found = read(run)
    assert [arm.state for arm in found.arms] == ["base", "unmerged", "merged"]
    unmerged, merged = found.arm("unmerged"), found.arm("merged")
    assert unmerged is not None
    assert merged is not None
    assert merged.merge is not None
    assert merged.merge.agrees
    assert unmerged.disk_bytes == run.adapter.stat().st_size
    assert merged.disk_bytes > unmerged.disk_bytes
    assert unmerged.memory[1].weights_bytes > merged.memory[1].weights_bytes
    measured = {(m.batch, m.steps) for m in found.measurements}
    assert measured | {(one.batch, one.steps) for one in found.left_out} == {(1, 1), (1, 2), (2, 1), (2, 2)}
    usual = found.usual("unmerged")
    assert usual is not None
    assert usual.to_base is not None
    assert usual == found.find("unmerged", usual.steps, 1)
    assert found.find("whole", 1, 1) is None
    assert not found.design.stopped


def test_several_runs_draw_in_turn_and_each_keeps_its_own(runs: dict[str, RunDir]) -> None:
    several = {name: runs[name] for name in ("full", "words")}
    made = limner.measure([run.path for run in several.values()], settings={**QUICK, "batches": 1, "seconds": 0.1})
    assert made == [run.inference for run in several.values()]
    found = {name: read(run) for name, run in several.items()}
    assert found["full"].design == found["words"].design
    assert {m.seconds for m in found["full"].measurements if m.arm == "base"} == {
        m.seconds for m in found["words"].measurements if m.arm == "base"
    }
    for name, one in found.items():
        assert [arm.state for arm in one.arms] == STATES[name]
        assert [arm.name for arm in one.arms[1:]] == [f"{name}, {state}" for state in STATES[name][1:]]


def test_a_stop_leaves_what_was_measured(runs: dict[str, RunDir]) -> None:
    class Stopping(Watch):
        """Presses Ctrl-C after the second round."""

        phase_name = ""

        def begin(self, phase: str) -> None:
            self.phase_name = phase

        def progress(self, done: int, total: int, note: str = "") -> None:
            if self.phase_name == "measure" and done == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        limner.measure(runs["pivotal"].path, settings={"inference_steps": 1, "batches": 1}, watch=Stopping())
    found = read(runs["pivotal"])
    assert found.design.stopped
    assert sorted(len(m.seconds) for m in found.measurements) == [2] * 3


def test_runs_that_draw_otherwise_are_refused_side_by_side(runs: dict[str, RunDir]) -> None:
    other = RunDir(Path(shutil.copytree(runs["lora"].path, runs["lora"].path.parent / "other")))
    other.recipe.write_text(other.recipe.read_text().replace("guidance_scale = 4.0", "guidance_scale = 3.0"))
    with pytest.raises(UserError, match="refused: .*lora and .*other have another generation. Measure each alone"):
        limner.measure([runs["lora"].path, other.path])
