"""What a run leaves behind, over every adapter: written, read again in a fresh base, it draws the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from limner.adapters.adapter import SlotSettings
from limner.adapters.full import Full
from limner.adapters.lora import LoRA
from limner.adapters.peft import Peft
from limner.adapters.pivotal import Pivotal
from limner.adapters.textual_inversion import TextualInversion
from limner.errors import UserError
from limner.families.family import Family
from limner.families.load import load
from limner.recipe import Recipe
from limner.result import attach_file, attach_result, require_result, result_hash, results, try_result, write_result
from limner.rundir import RunDir

WORD = "<it>"
CASES: dict[str, Any] = {
    "lora": LoRA(rank=2, text_encoder=True),
    "peft": Peft(method="dora", rank=2, targets="all", text_encoder=True),
    "peft-as-lora": Peft(method="pissa", rank=2),
    "full": Full(text_encoder=True, save_precision="float32"),
    "words": TextualInversion(vectors=2),
    "pivotal": Pivotal(lora=LoRA(rank=2), words=TextualInversion(vectors=3)),
}
FILES = {
    "lora": ["adapter.safetensors"],
    "peft": ["adapter.safetensors"],
    "peft-as-lora": ["adapter.safetensors"],
    "full": ["model", "model.safetensors"],
    "words": ["it.safetensors"],
    "pivotal": ["adapter.safetensors", "it.safetensors"],
}


def picture(family: Family) -> Tensor:
    x_t = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return family.predict(x_t, torch.tensor([7, 800]), family.encode_text([f"a {WORD} critter", "a robot"]))


@pytest.mark.parametrize("name", CASES)
def test_a_result_read_again_draws_the_same(name: str, family: Family, random_base: Path, tmp_path: Path) -> None:
    recipe = Recipe(base=str(random_base), adapter=CASES[name])
    adapter = recipe.adapter.attach(family, [SlotSettings(seed=0, words={WORD: "robot"})])
    for parameter in adapter.slot_parameters(0).values():
        parameter.detach().add_(0.05 * torch.randn(parameter.shape))
    folder = RunDir(tmp_path)
    try_result(folder, recipe, family, adapter)
    assert results(folder) == []
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="has no adapter yet"):
        require_result(folder)
    files = write_result(folder, recipe, family, adapter)
    assert [file.name for file in files] == FILES[name]
    assert sorted(require_result(folder)) == sorted(files)
    first = result_hash(folder)
    write_result(folder, recipe, family, adapter)
    assert result_hash(folder) == first
    tuned = picture(family)
    adapter.detach()
    base = picture(family)
    assert not torch.allclose(base, tuned)
    if folder.model.is_dir():
        again = load(str(folder.model), dtype=torch.float32, device="cpu")
        assert torch.equal(picture(again), tuned)
        return
    attached = attach_result(family, folder)
    torch.testing.assert_close(picture(family), tuned, rtol=1e-4, atol=1e-5)
    for one in reversed(attached):
        one.detach()
    assert torch.equal(picture(family), base)


def test_a_lora_of_another_family_is_refused_by_its_name(family: Family, tmp_path: Path) -> None:
    layer = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    file = tmp_path / "xl.safetensors"
    save_file({f"{layer}.lora_A.weight": torch.zeros(4, 2048), f"{layer}.lora_B.weight": torch.zeros(640, 4)}, file)
    with pytest.raises(UserError, match=r"xl\.safetensors: is a LoRA for SDXL \(cross-attention 2048\); the base is"):
        attach_file(family, file, 1.0)
