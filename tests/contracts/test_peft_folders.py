"""`export --to peft`: every method of peft, and every LoRA, is loaded by peft itself and means what it meant."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, OFTConfig, PeftModel
from torch import Tensor

from limner import sharing
from limner.adapter_file import read_adapter
from limner.adapter_set import AdapterSet
from limner.adapters.adapter import SlotSettings
from limner.adapters.peft import Peft
from limner.errors import UserError
from limner.export.kohya_lora import write_kohya
from limner.export.peft_adapter import WITHOUT_BIAS, write_peft
from limner.families.family import Family
from limner.inspecting import inspect
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
    found = AdapterSet(family)
    found.set({found.load(folder): 1.0})
    torch.testing.assert_close(predicted(family), wanted, rtol=0, atol=1e-5)
    found.set({})
    assert torch.equal(predicted(family), untouched)
    if method in ("dora", "loha", "lokr"):
        (again,) = sharing.export(folder, to="lycoris")
        found.set({found.load(again): 1.0})
        torch.testing.assert_close(predicted(family), wanted, rtol=0, atol=1e-5)
        found.set({})
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
    assert inspect(folder).facts["kinds"] == {kind.partition(" ")[0]: len(layers)}
    (again,) = sharing.export(folder, to="kohya")
    assert again == tmp_path / "out-kohya.safetensors"
    for one in (folder, again):
        (attached,) = [adapter for file in read_adapter(one) for adapter in file.attach(family)]
        torch.testing.assert_close(predicted(family), wanted, rtol=0, atol=1e-5)
        attached.detach()
    torch.testing.assert_close(pefts(family, folder), wanted, rtol=1e-4, atol=1e-5)


USERS: dict[str, Any] = {
    "a LoRA with patterns": LoraConfig(
        r=4, lora_alpha=6, target_modules=["to_q", "to_k"], rank_pattern={r"attn1\.to_q": 2},
        alpha_pattern={"attn2.to_k": 12}, lora_dropout=0.1,
    ),
    "rsLoRA on some blocks": LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, target_modules=r"down_blocks.*\.(to_q|to_v|conv1)",
    ),
    "PiSSA": LoraConfig(r=2, init_lora_weights="pissa", target_modules=["to_q"]),
    "OLoRA": LoraConfig(r=2, init_lora_weights="olora", target_modules=["to_v"]),
    "IA3 with feed-forward": IA3Config(target_modules=["to_k", "ff.net.2"], feedforward_modules=["ff.net.2"]),
    "LoHa with patterns": LoHaConfig(r=2, alpha=3, target_modules=["to_q", "conv1"], rank_pattern={"conv1": 3}),
    "OFT of shared blocks": OFTConfig(oft_block_size=4, r=0, block_share=True, target_modules=["to_q"]),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
@pytest.mark.parametrize("what", USERS)
def test_a_folder_that_pefts_users_have_draws_what_peft_draws(what: str, family: Family, tmp_path: Path) -> None:
    """Of one part, saved by peft itself, in a folder of any name, with settings that Limner never writes."""
    untouched, unet = predicted(family), copy.deepcopy(family.unet)
    model = PeftModel(unet, copy.deepcopy(USERS[what]))
    draws = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ".base_layer." not in name:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=draws)
    model.save_pretrained(str(tmp_path / "mine"))
    own, family.unet = family.unet, unet.eval()
    wanted, family.unet = predicted(family), own
    assert not torch.allclose(wanted, untouched, atol=1e-4)
    assert str(inspect(tmp_path / "mine").lines[0]).startswith(str(tmp_path / "mine"))
    found = AdapterSet(family)
    found.set({found.load(tmp_path / "mine"): 1.0})
    torch.testing.assert_close(predicted(family), wanted, rtol=0, atol=2e-5)
    found.merge()
    torch.testing.assert_close(predicted(family), wanted, rtol=0, atol=1e-4)
    found.set({})
    assert torch.equal(predicted(family), untouched)


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
    with pytest.raises(UserError, match="LyCORIS turns a layer's outputs, and peft its inputs"):
        sharing.export(file, to="lycoris")
    file = write_method(family, "lokr", tmp_path / "y.safetensors")
    with pytest.raises(UserError, match="the diffusers layout cannot hold LoKr .*Write it with --to lycoris"):
        sharing.export(file, to="diffusers")
    assert sharing.export(file, to="lycoris") == [tmp_path / "y-lycoris.safetensors"]


def test_ia3_goes_to_lycoris_where_no_bias_is_scaled(family: Family, tmp_path: Path) -> None:
    """LyCORIS scales weights alone; peft's method scales what comes out of a layer, its bias too."""
    layers = [(name, layer) for name, layer in family.unet.named_modules() if name.endswith(WITHOUT_BIAS)]
    assert layers
    assert all(layer.bias is None for _, layer in layers)
    spec, untouched = Peft(method="ia3", targets=tuple(f"*{end}" for end in WITHOUT_BIAS)), predicted(family)
    adapter = spec.attach(family, [SlotSettings(seed=1)])
    for tensor in adapter.slot_parameters(0).values():
        tensor.data += 0.2 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(tensor.numel()))
    wanted, file = predicted(family), tmp_path / "x.safetensors"
    write_peft(spec, adapter.state_dict(), file, family.facts)
    adapter.detach()
    assert not torch.allclose(wanted, untouched, atol=1e-3)
    (written,) = sharing.export(file, to="lycoris")
    found = AdapterSet(family)
    found.set({found.load(written): 1.0})
    torch.testing.assert_close(predicted(family), wanted, rtol=0, atol=1e-5)
    found.set({})
    write_method(family, "ia3", file)
    with pytest.raises(UserError, match=r"scales the biases of \d+ of \d+ layers too, and .* Use --to peft, or train"):
        sharing.export(file, to="lycoris")
