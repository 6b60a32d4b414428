"""`export --to peft`: every method of peft, and every LoRA, is loaded by peft itself and means what it meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from limner import sharing
from limner.adapter_file import read_adapter
from limner.adapters.adapter import SlotSettings
from limner.errors import UserError
from limner.export.kohya_lora import write_kohya
from limner.export.peft_adapter import write_peft
from limner.families.family import Family
from tests.lora_layouts import changes
from tests.unit.peft_methods import SPECS


def predicted(family: Family) -> Tensor:
    x_t = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return family.predict(x_t, torch.tensor([3, 700]), family.encode_text(["a red dog", "b"]))


def write_method(family: Family, method: str, path: Path) -> Path:
    """Write the file that a run of the method leaves behind."""
    spec, draws = SPECS[method], torch.Generator().manual_seed(3)
    adapter = spec.attach(family, [SlotSettings(seed=1)])
    for tensor in adapter.slot_parameters(0).values():
        tensor.data += 0.05 * torch.randn(tensor.shape, generator=draws)
    write_peft(spec, adapter.state_dict(), path, family.facts)
    adapter.detach()
    return path


def pefts(family: Family, folder: Path) -> Tensor:
    """Return what a base predicts with peft's own layers in it."""
    for part in sorted(folder.iterdir()):
        PeftModel.from_pretrained(family.modules[part.name], str(part))
    return predicted(family)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
@pytest.mark.parametrize(
    ("random_base", "method"),
    [*(("sd15", method) for method in SPECS), *(("xl", method) for method in ("dora", "lokr", "oft", "vera"))],
    indirect=["random_base"],
)
def test_peft_predicts_what_limner_predicts(method: str, family: Family, random_base: Path, tmp_path: Path) -> None:
    file, untouched = write_method(family, method, tmp_path / "x.safetensors"), predicted(family)
    (folder,) = sharing.export(file, to="peft")
    assert folder == tmp_path / "x-peft"
    assert {part.name for part in folder.iterdir()} == set(family.modules)
    attached = [adapter for one in read_adapter(file) for adapter in one.attach(family)]
    wanted = predicted(family)
    for adapter in attached:
        adapter.detach()
    assert not torch.allclose(wanted, untouched, atol=1e-4)
    torch.testing.assert_close(pefts(family, folder), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
@pytest.mark.parametrize("kind", ["LoRA", "DoRA by outputs"])
def test_a_lora_of_any_program_becomes_pefts(kind: str, family: Family, tmp_path: Path) -> None:
    """Layers of other ranks and alphas keep theirs, and the base is not touched by the check."""
    layers, file = changes(family, kind, every=3), tmp_path / "x.safetensors"
    odd = [(name, change) for name, change in changes(family, "LoRA").items() if name not in layers][:2]
    for rank, (name, change) in enumerate(odd, start=1) if kind == "LoRA" else ():
        own: Any = change
        layers[name] = type(own)(own.A[:rank], own.B[:, :rank], 3.0)
    write_kohya(layers, file, family.facts)
    for precision in ("bfloat16", "float32"):
        (folder,) = sharing.export(file, to="peft", out=tmp_path / "out", settings={"precision": precision})
    (attached,) = [adapter for one in read_adapter(file) for adapter in one.attach(family)]
    wanted = predicted(family)
    attached.detach()
    torch.testing.assert_close(pefts(family, folder), wanted, rtol=1e-4, atol=1e-5)


def test_an_adapter_that_does_nothing_is_not_written(family: Family, tmp_path: Path) -> None:
    adapter = SPECS["oft"].attach(family, [SlotSettings(seed=1)])
    write_peft(SPECS["oft"], adapter.state_dict(), tmp_path / "x.safetensors", family.facts)
    adapter.detach()
    with pytest.raises(UserError, match="the adapter has no effect"):
        sharing.export(tmp_path / "x.safetensors", to="peft")
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_what_has_no_place_there_is_said_in_one_line(family: Family, random_base: Path, tmp_path: Path) -> None:
    file, unknown = tmp_path / "x.safetensors", {"family": family.kind}
    write_kohya(changes(family, "LoHa", every=9), file, family.facts)
    with pytest.raises(UserError, match="LoHa of another program has no place in peft .*Use --to lycoris"):
        sharing.export(file, to="peft")
    write_kohya(changes(family, "LoRA", every=9), file, unknown)
    with pytest.raises(UserError, match="does not tell the base that peft loads it into. Name it: base="):
        sharing.export(file, to="peft")
    sharing.export(file, to="peft", settings={"base": str(random_base)}, out=tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is there already and no adapter of peft's"):
        sharing.export(file, to="peft", settings={"base": str(random_base)}, out=tmp_path / "mine")
    with pytest.raises(UserError, match="shard is no setting of --to peft. It takes precision=..., base=..."):
        sharing.export(file, to="peft", settings={"shard": 1})


def test_every_other_layout_says_where_a_method_can_go(family: Family, tmp_path: Path) -> None:
    file = write_method(family, "oft", tmp_path / "x.safetensors")
    for to in ("diffusers", "kohya", "lycoris"):
        with pytest.raises(UserError, match=r"method oft, and no LoRA.*limner export --to peft writes it"):
            sharing.export(file, to=to)
    file = write_method(family, "lokr", tmp_path / "y.safetensors")
    with pytest.raises(UserError, match="the diffusers layout cannot hold LoKr .*Write it with --to lycoris"):
        sharing.export(file, to="diffusers")
    assert sharing.export(file, to="lycoris") == [tmp_path / "y-lycoris.safetensors"]
