"""Adapters that really trained: every writer, kind and number format gives the same change, and the same picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from numpy.typing import NDArray
from peft import PeftModel

from limner import sharing
from limner.adapters.adapter import SlotSettings
from limner.adapters.lora import LoRA
from limner.adapters.peft import Peft
from limner.errors import UserError
from limner.export.diffusers_lora import write_lora
from limner.export.lora_check import difference, has_effect
from limner.export.lora_files import read_any_lora
from limner.export.peft_adapter import write_peft
from limner.families.family import Family
from limner.objectives import Denoising
from limner.train.loop import Slot, Training
from limner.train.optimizer import AdamW
from tests.fresh import fresh
from tests.parity.test_methods import Two

KINDS: dict[str, LoRA | Peft] = {
    "LoRA": LoRA(rank=3, alpha=2.0, targets="all", text_encoder=True),
    "DoRA": Peft(method="dora", rank=2, text_encoder=True),
    "LoHa": Peft(method="loha", rank=2, text_encoder=True),
    "LoKr": Peft(method="lokr", rank=2, text_encoder=True),
}
FORMATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
STEPS = 4


@pytest.fixture(scope="session")
def trained(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Train an adapter of each kind for a few steps, and write it as a run does."""
    folder, files = tmp_path_factory.mktemp("trained"), {}
    family = fresh(random_base)
    torch.manual_seed(0)
    for name, spec in KINDS.items():
        adapter = spec.attach(family, [SlotSettings(seed=1)])
        slot = Slot("s", Two(family), seed=5, steps=STEPS, learning_rate=2e-2)
        training = Training(family, adapter, [slot], objective=Denoising(snr_gamma=0.0), optimizer=AdamW())
        before = adapter.state_dict()
        for _ in range(STEPS):
            training.step()
        state, files[name] = adapter.state_dict(), folder / f"{name}.safetensors"
        assert any(not torch.equal(before[key], tensor) for key, tensor in state.items())
        if isinstance(spec, LoRA):
            write_lora(state, files[name], family.facts)
        else:
            write_peft(spec, state, files[name], family.facts)
        adapter.detach()
    return files


@pytest.mark.parametrize("kind", KINDS)
def test_every_writer_and_format_means_what_was_trained(kind: str, trained: dict[str, Path], tmp_path: Path) -> None:
    wanted = read_any_lora(trained[kind]).layers
    assert has_effect(wanted)
    for to in ("diffusers", "kohya", "lycoris", "peft"):
        for precision, dtype in FORMATS.items():
            out = tmp_path / f"{to}-{precision}{'' if to == 'peft' else '.safetensors'}"
            if to == "diffusers" and kind in ("LoHa", "LoKr"):
                with pytest.raises(UserError, match="cannot hold .*--to lycoris"):
                    sharing.export(trained[kind], to=to, out=out, settings={"precision": precision})
                continue
            sharing.export(trained[kind], to=to, out=out, settings={"precision": precision})
            found = read_any_lora(out / "unet" / "adapter_model.safetensors" if to == "peft" else out)
            own = {name: change for name, change in wanted.items() if to != "peft" or name.startswith("unet.")}
            assert found.layers.keys() == own.keys(), (to, precision)
            assert to == "peft" or found.precision == precision
            worst = max(difference(own[name], change) for name, change in found.layers.items())
            assert worst <= (1e-6 if precision == "float32" else 8 * torch.finfo(dtype).eps), (to, precision)


def picture(pipe: Any) -> NDArray[np.float32]:
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(7))
    pipe.set_progress_bar_config(disable=True)
    return pipe("a red dog", num_inference_steps=3, guidance_scale=3.0, latents=noise, height=64, width=64,
                output_type="np").images[0]  # fmt: skip


def limners(family: Family) -> NDArray[np.float32]:
    return picture(family.pipeline(DDIMScheduler.from_config(family.scheduler_config)))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_stock_programs_draw_the_same_picture(
    trained: dict[str, Path], family: Family, random_base: Path, tmp_path: Path
) -> None:
    """diffusers from both layouts, and peft from its folders: the picture is Limner's, and not the base's."""
    base = limners(family)
    for kind, to in (
        ("LoRA", "diffusers"),
        ("LoRA", "kohya"),
        ("DoRA", "diffusers"),
        ("LoHa", "peft"),
        ("DoRA", "peft"),
    ):
        adapter = read_any_lora(trained[kind]).attach(family.modules)
        wanted = limners(family)
        adapter.detach()
        out = tmp_path / f"{kind}-{to}{'' if to == 'peft' else '.safetensors'}"
        sharing.export(trained[kind], to=to, out=out)
        pipe: Any = DiffusionPipeline.from_pretrained(random_base)
        if to == "peft":
            for part in out.iterdir():
                PeftModel.from_pretrained(getattr(pipe, part.name), str(part))
        else:
            pipe.load_lora_weights(str(out))
        apart = np.abs(picture(pipe) - wanted).max()
        assert apart < 2e-4, (kind, to, apart)
        assert np.abs(base - wanted).max() > 0.02, (kind, np.abs(base - wanted).max())
