"""What may change when a run goes on, what is refused, and what is said; and new runs that begin with old weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from limner import run
from limner.adapters.adapter import SlotSettings
from limner.errors import UserError
from limner.families.family import Family
from limner.families.source import ASSETS
from limner.recipe import load_recipe, setting_names
from limner.resuming import MAY_CHANGE
from limner.rundir import RunDir, read_json, write_json
from limner.starting import start_from
from limner.train.checkpoint import sum_of
from tests.pipeline.lines import Lines

CRITTER = ASSETS / "demo" / "critter"


def settings(base: Path, **more: Any) -> dict[str, Any]:
    return {"base": str(base), "steps": 2, "batch": 2, "pictures.class_noun": "critter", "adapter.rank": 2,
            "adapter.targets": "attention", "adapter.save_precision": "float32",
            **{k.replace("__", "."): v for k, v in more.items()}}  # fmt: skip


def weights(folder: RunDir) -> dict[str, torch.Tensor]:
    return load_file(folder.adapter)


def same(a: RunDir, b: RunDir) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(t, second[n]) for n, t in first.items())


@pytest.fixture(scope="module")
def finished(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Train two steps on a copy of the pictures; return the run."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(CRITTER, folder / "pictures")
    return run.train(folder / "pictures", settings=settings(random_base), run=folder / "run")


@pytest.fixture
def done(finished: RunDir, tmp_path: Path) -> RunDir:
    """Return a copy of the finished run that a test may change."""
    return RunDir(shutil.copytree(finished.path, tmp_path / "run"))


def test_what_may_change_is_a_setting() -> None:
    names = {setting.name for setting in setting_names()}
    assert all(key in names or any(name.startswith(f"{key}.") for name in names) for key in MAY_CHANGE)


@pytest.mark.parametrize(
    ("change", "message"),
    {
        "rank": (
            {"adapter.rank": 4},
            "made with adapter.rank=2, and the recipe says 4. Put it back, or start a new run",
        ),
        "seed": ({"seed": 7}, "made with seed=0, and the recipe says 7"),
        "kind": ({"adapter.kind": "full"}, "made with adapter.kind=lora, and the recipe says full ("),
        "alpha": ({"adapter.alpha": 3.0}, "made without adapter.alpha, and the recipe says 3.0"),
        "precision": ({"precision": "bfloat16"}, "made with precision=float32, and the recipe says bfloat16"),
        "deterministic": ({"deterministic": True}, "made with deterministic=false, and the recipe says true"),
        "caption": ({"pictures.caption": "a {token}"}, "and the recipe says a {token}"),
    }.values(),
    ids=str,
)
def test_what_may_not_change_is_refused(done: RunDir, change: dict[str, Any], message: str) -> None:
    before = done.recipe.read_bytes()
    with pytest.raises(UserError) as caught:
        run.resume(done.path, settings={**change, "steps": 4})
    assert str(caught.value).startswith(f"{done.path}: cannot be resumed: its checkpoint was made with")
    assert message in str(caught.value)
    assert f"init_from={done.path}" in str(caught.value)
    assert done.recipe.read_bytes() == before


def test_a_recipe_edited_by_hand_is_noticed(done: RunDir) -> None:
    text = done.recipe.read_text()
    done.recipe.write_text(text.replace("steps = 2", "steps = 4").replace("batch = 2", "batch = 1"))
    with pytest.raises(UserError, match="made with batch=2, and the recipe says 1"):
        run.resume(done.path)
    done.recipe.write_text(text.replace("rank = 2", "rank = 4"))
    with pytest.raises(UserError, match=r"made with adapter.rank=2, and the recipe says 4\. Put it back"):
        run.resume(done.path)


def test_what_may_change_changes_nothing(done: RunDir, random_base: Path, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(random_base, tmp_path / "base")
    lines = Lines()
    free = {"base": str(elsewhere), "device": "cpu", "pictures.workers": 0, "checkpoint.every_steps": 1}
    run.resume(done.path, settings={"steps": 4, **free}, watch=lines)
    assert not [line for line in lines.said if "may differ" in line or "instead of" in line]
    whole = run.train(CRITTER, settings=settings(random_base, steps=4), run=tmp_path / "whole")
    assert same(done, whole)
    rows = done.read_log("step")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["epoch"] for row in rows] == [0.4, 0.8, 1.2, 1.6]
    assert [{k: v for k, v in row.items() if k not in ("seconds", "memory_gib")} for row in rows] == [
        {k: v for k, v in row.items() if k not in ("seconds", "memory_gib")} for row in whole.read_log("step")
    ]
    trained = read_json(done.provenance)["trained"]
    assert trained["steps"] == 4
    assert trained["epochs"] == 1.6
    assert trained["seconds"] == pytest.approx(sum(row["seconds"] for row in rows), abs=1e-3)
    lines = Lines()
    with pytest.raises(UserError, match="is already finished: 4 of 4 steps"):
        run.resume(done.path, watch=lines)
    assert lines.phases == ["check"], "nothing is loaded for it"


def test_another_base_is_refused(done: RunDir, random_base: Path, tmp_path: Path) -> None:
    other = shutil.copytree(random_base, tmp_path / "other")
    file = next((other / "unet").glob("*.safetensors"))
    tensors = load_file(file)
    tensors["conv_in.bias"] += 1
    save_file(tensors, file)
    with pytest.raises(UserError) as caught:
        run.resume(done.path, settings={"steps": 4, "base": str(other)})
    assert f"its checkpoint was made on the base {random_base} (unet " in str(caught.value)
    assert f"and {other} is another (unet " in str(caught.value)


def test_other_versions_and_another_schedule_are_said(random_base: Path, tmp_path: Path) -> None:
    folder = run.train(CRITTER, settings=settings(random_base, optimizer__schedule="cosine"), run=tmp_path / "run")
    state = next(folder.checkpoints.glob("step-*")) / "state.json"
    numbers = read_json(state)
    numbers["made_with"]["computed"] |= {"torch": "2.1.0", "threads": 64, "device": "NVIDIA A100"}
    sums = numbers.pop("sha256")
    write_json(state, {**numbers, "sha256": {**sums, "state.json": sum_of(numbers)}})
    lines = Lines()
    run.resume(folder.path, settings={"steps": 3}, watch=lines)
    (told,) = [line for line in lines.said if line.startswith("goes on with ")]
    assert "device cpu (was NVIDIA A100)" in told
    assert "threads 1 (was 64)" in told
    assert f"torch {torch.__version__.partition('+')[0]}" in told
    assert told.endswith("results may differ in the last bits")
    (told,) = [line for line in lines.said if line.startswith("steps=3 instead of 2")]
    assert "the first 2 had that of a run of 2" in told
    assert read_json(folder.provenance)["resumed"][0]["step"] == 2
    assert len(read_json(folder.provenance)["resumed"][0]["differences"]) == 2


def test_other_pictures_can_be_accepted(done: RunDir, finished: RunDir, tmp_path: Path) -> None:
    pictures = shutil.copytree(CRITTER, tmp_path / "pictures")
    write_json(done.provenance, {**read_json(done.provenance), "pictures": [str(pictures)]})
    (pictures / "1.png").unlink()
    with pytest.raises(UserError, match=r"removed: 1.png.*accept_dataset_change=true"):
        run.resume(done.path, settings={"steps": 3})
    lines = Lines()
    run.resume(done.path, settings={"steps": 3, "accept_dataset_change": True}, watch=lines)
    told = "the data changed since the checkpoint (1 file removed: 1.png): the run is no longer exact"
    assert told in lines.said
    assert read_json(done.provenance)["resumed"][0]["differences"] == [told]
    assert "accept_dataset_change" not in done.recipe.read_text()
    lines = Lines()
    run.resume(done.path, settings={"steps": 4}, watch=lines)
    assert not [line for line in lines.said if "no longer exact" in line]
    with pytest.raises(UserError, match="accept_dataset_change=1: is not allowed"):
        run.resume(done.path, settings={"steps": 5, "accept_dataset_change": 1})


def test_without_a_checkpoint_everything_may_change(done: RunDir) -> None:
    shutil.rmtree(done.checkpoints)
    run.resume(done.path, settings={"adapter.rank": 1, "steps": 1})
    assert {t.shape[0] for n, t in weights(done).items() if n.endswith("lora_A.weight")} == {1}


def test_deterministic_gives_the_same_bits_on_the_cpu(finished: RunDir, random_base: Path, tmp_path: Path) -> None:
    lines = Lines()
    folder = run.train(CRITTER, settings=settings(random_base, deterministic=True), run=tmp_path / "run", watch=lines)
    assert same(folder, finished)
    assert not [line for line in lines.said if "deterministic" in line]
    assert read_json(folder.provenance)["deterministic"] is True
    assert read_json(folder.provenance)["computed"]["device"] == "cpu"
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_new_run_begins_with_the_weights_of_another(finished: RunDir, random_base: Path, tmp_path: Path) -> None:
    tiny = settings(random_base, init_from=str(finished.path), learning_rate=1e-12, optimizer__weight_decay=0)
    folder = run.train(CRITTER, settings=tiny, run=tmp_path / "run")
    begun, ended = weights(finished), weights(folder)
    assert all(torch.allclose(tensor, ended[name], atol=1e-7) for name, tensor in begun.items())
    assert list(read_json(folder.provenance)["init_from"]) == [str(finished.adapter)]
    with pytest.raises(
        UserError, match=r"init_from=.*: has rank 2 at .*, and the recipe asks for 4\. Set the rank to 2"
    ):
        run.train(CRITTER, settings={**tiny, "adapter.rank": 4}, run=tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(UserError, match="init_from=nowhere: there is no such run or file"):
        run.train(CRITTER, settings={**tiny, "init_from": "nowhere"}, run=tmp_path / "other")


ADAPTERS = {
    "lora": {"adapter.rank": 2, "adapter.targets": "attention"},
    "full": {"adapter.kind": "full", "adapter.targets": ["*.attn2.*"], "adapter.save_precision": "float32"},
    "textual_inversion": {"adapter.kind": "textual_inversion", "pictures.token": "<critter>"},
    "pivotal": {"adapter.kind": "pivotal", "pictures.token": "<critter>", "adapter.lora.rank": 2},
    "dora": {"adapter.kind": "peft", "adapter.method": "dora"},
    "loha": {"adapter.kind": "peft", "adapter.method": "loha"},
}


@pytest.fixture(scope="module", params=["full", "textual_inversion", "pivotal", "dora", "loha"])
def trained(request: pytest.FixtureRequest, random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Train one step of a method; return its settings and its run."""
    own = {"base": str(random_base), "steps": 1, "pictures.class_noun": "critter", "learning_rate": 0.01,
           **ADAPTERS[request.param]}  # fmt: skip
    return own, run.train(CRITTER, settings=own, run=tmp_path_factory.mktemp("trained") / request.param)


def test_every_adapter_can_begin_with_its_own_result(trained: Any, family: Family) -> None:
    """What is loaded is what the checkpoint has: the result is the whole of what was learned."""
    own, folder = trained
    recipe = load_recipe("lora", {**own, "init_from": str(folder.path)})
    adapter = recipe.adapter.attach(family, [SlotSettings(seed=5, words={recipe.pictures.token: "critter"})])
    files = start_from(recipe, adapter)
    assert all(len(digest) == 64 for digest in files.values())
    kept = load_file(next(folder.checkpoints.glob("step-*")) / "state.safetensors")
    for name, parameter in adapter.slot_parameters(0).items():
        torch.testing.assert_close(parameter.detach(), kept[f"0|weight|{name}"], rtol=1e-4, atol=1e-6)
    adapter.detach()


def test_what_does_not_fit_is_one_line(finished: RunDir, family: Family) -> None:
    for name, message in {
        "full": "is nothing that adapter.kind=full can begin with",
        "textual_inversion": "is nothing that adapter.kind=textual_inversion can begin with",
        "loha": "is not in the layout of adapter.kind=peft",
    }.items():
        recipe = load_recipe("lora", {**ADAPTERS[name], "init_from": str(finished.path)})
        adapter = recipe.adapter.attach(family, [SlotSettings(seed=0, words={"<critter>": "critter"})])
        with pytest.raises(UserError) as caught:
            start_from(recipe, adapter)
        adapter.detach()
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_alpha_may_differ_and_the_effect_is_the_same(finished: RunDir, family: Family) -> None:
    recipe = load_recipe("lora", {**ADAPTERS["lora"], "adapter.alpha": 1.0, "init_from": str(finished.path)})
    adapter = recipe.adapter.attach(family, [SlotSettings(seed=0)])
    start_from(recipe, adapter)
    layer = next(iter(adapter.layers))
    file = weights(finished)
    effect = file[f"{layer}.lora_B.weight"] @ file[f"{layer}.lora_A.weight"]
    torch.testing.assert_close(adapter.layers[layer].delta_weight(0).detach(), effect)
    adapter.detach()
