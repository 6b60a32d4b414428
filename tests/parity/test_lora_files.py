"""What peft trains, read from its file and from a kohya file, draws what peft draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from limner.adapters.adapter import SlotSettings
from limner.adapters.peft import Peft
from limner.export.kohya_lora import write_kohya
from limner.export.lora_files import read_any_lora
from limner.export.peft_adapter import write_peft
from limner.families.family import Family


def predicted(family: Family) -> torch.Tensor:
    x_t = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return family.predict(x_t, torch.tensor([3, 700]), family.encode_text(["a red dog", "b"]))


@pytest.mark.parametrize(
    ("method", "options"),
    [("dora", {}), ("loha", {}), ("loha", {"use_effective_conv2d": True}), ("lokr", {"decompose_both": True}),
     ("lokr", {"use_effective_conv2d": True})],
)  # fmt: skip
def test_what_peft_trains_draws_the_same_from_a_kohya_file(
    method: Any, options: dict[str, Any], family: Family, tmp_path: Path
) -> None:
    spec = Peft(method=method, rank=2, alpha=3.0, targets="all", text_encoder=True, options=options)
    adapter = spec.attach(family, [SlotSettings(seed=1)])
    for parameter in adapter.slot_parameters(0).values():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    wanted = predicted(family)
    write_peft(spec, adapter.state_dict(), tmp_path / "run.safetensors", family.facts)
    adapter.detach()
    write_kohya(read_any_lora(tmp_path / "run.safetensors").layers, tmp_path / "x.safetensors", family.facts)
    read_any_lora(tmp_path / "x.safetensors").attach(family.modules)
    torch.testing.assert_close(predicted(family), wanted, rtol=1e-5, atol=1e-5)
