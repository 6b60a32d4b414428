"""Does LyCORIS mean by a file what Limner means by it, and the other way round?

`pip install lycoris-lora && python -m benchmarks.lycoris_reads [--out FILE]`

On a small UNet of SD 1.5's classes with random weights: Limner exports LoRA, LoHa, LoKr, DoRA and (IA)^3 to LyCORIS,
which attaches each file to the UNet, and what the UNet predicts is compared with what it predicts in Limner. Then
LyCORIS makes and saves a network of each of its algorithms; Limner reads and attaches that, and writes it again, for
LyCORIS to read. (LyCORIS's `merge_to`
is no measure: in 4.1.3 it applies the scale of LoHa and LoKr twice, its forward pass once.)
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lycoris import LycorisNetwork, create_lycoris, create_lycoris_from_weights
from safetensors.torch import load_file, save_file
from torch import Tensor

from limner.adapters.adapter import SlotSettings
from limner.adapters.peft import Peft
from limner.export.kohya_lora import write_kohya
from limner.export.lora_files import read_any_lora
from limner.export.peft_adapter import write_peft
from limner.families.family import Family
from limner.families.load import load
from limner.rundir import write_json
from limner.sharing import export
from tests.random_base import make_random_base

MADE = {
    "locon": {"algo": "locon"}, "locon with cores": {"algo": "locon", "use_tucker": True},
    "loha": {"algo": "loha"}, "loha with cores": {"algo": "loha", "use_tucker": True},
    "lokr": {"algo": "lokr", "factor": 4}, "lokr with cores": {"algo": "lokr", "factor": 4, "use_tucker": True},
    "lokr, both whole": {"algo": "lokr", "full_matrix": True},
    "dora by inputs": {"algo": "locon", "dora_wd": True, "wd_on_output": False},
    "dora by outputs": {"algo": "locon", "dora_wd": True, "wd_on_output": True},
    "full": {"algo": "full"}, "oft": {"algo": "diag-oft"},
    "oft, constrained and rescaled": {"algo": "diag-oft", "constraint": 1e-3, "rescaled": True},
    "boft": {"algo": "boft"}, "boft, constrained and rescaled": {"algo": "boft", "constraint": 1e-3, "rescaled": True},
    "(ia)^3": {"algo": "ia3"}, "(ia)^3 on inputs": {"algo": "ia3", "train_on_input": True},
    "glora": {"algo": "glora"},
}  # fmt: skip
"""What LyCORIS is asked for."""
EVERYTHING = {"target_module": ["Transformer2DModel", "ResnetBlock2D"]}
TRAINED: dict[str, dict[str, Any]] = {
    "rslora": {"method": "rslora"}, "dora": {"method": "dora"}, "loha": {"method": "loha"},
    "loha with cores": {"method": "loha", "options": {"use_effective_conv2d": True}}, "lokr": {"method": "lokr"},
    "lokr with cores": {"method": "lokr", "options": {"use_effective_conv2d": True}},
    "lokr, linear layers": {"method": "lokr", "targets": "attention"},
    "(ia)^3": {"method": "ia3", "targets": ("*.to_k", "*.to_v"), "rank": None, "alpha": None},
}  # fmt: skip
"""What Limner trains, by peft's methods: LyCORIS reads a LoKr only where its layers are divided as its own are."""


def main() -> None:
    """Parse the command line, compare in both directions, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lycoris_reads", description=__doc__)
    parser.add_argument("--out", type=Path, help="write the result here too")
    given = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as passing:
        base = make_random_base(Path(passing) / "base")
        found = {
            "lycoris": version("lycoris-lora"), "torch": torch.__version__,
            "LyCORIS reads Limner's file": {kind: _theirs(base, Path(passing), how) for kind, how in TRAINED.items()},
            "Limner reads LyCORIS's file": {name: _ours(base, Path(passing), how) for name, how in MADE.items()},
        }  # fmt: skip
    for direction, rows in found.items():
        print(direction, "" if isinstance(rows, dict) else rows)
        for name, row in rows.items() if isinstance(rows, dict) else ():
            if "refused" in row:
                print(f"  {name:<20} LyCORIS refuses it: {row['refused']}")
                continue
            off = f"largest difference {row['difference']:.1e} of {row['change']:.2f}"
            again = f", written again {row['again']:.1e}" if "again" in row else ""
            again += f", LyCORIS refuses it again: {row['again refused']}" if "again refused" in row else ""
            print(f"  {name:<32}{row['layers']:>4} layers  {off}{again}")
    if given.out:
        write_json(given.out, found)


def _theirs(base: Path, folder: Path, how: Mapping[str, Any]) -> dict[str, Any]:
    """Compare LyCORIS's merge of a file of ours with our own."""
    ours, other = (load(str(base), dtype=torch.float32, device="cpu") for _ in range(2))
    spec, before = Peft.model_validate({"rank": 2, "alpha": 3.0, "targets": "all", **how}), _predicted(ours)
    adapter = spec.attach(ours, [SlotSettings(seed=1)])
    for parameter in adapter.slot_parameters(0).values():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    write_peft(spec, adapter.state_dict(), folder / "run.safetensors", ours.facts)
    wanted = _predicted(ours)
    export(folder / "run.safetensors", to="lycoris", out=folder / "x.safetensors")
    try:
        network = _attached(other, folder / "x.safetensors")
    except (AttributeError, RuntimeError) as error:  # it makes a LoKr anew by rules of its own, and then copies into it
        return {"refused": str(error)[:120]}
    return _compared(wanted, _predicted(other), before, len(network.loras))


def _attached(family: Family, file: Path) -> Any:
    """Have LyCORIS attach a file of ours to a UNet."""
    # Its wrapper for diffusers has a prefix of its own; what follows is the same.
    named = {n.replace("lora_unet_", "lycoris_"): t for n, t in load_file(file).items()}
    try:
        network, _ = create_lycoris_from_weights(1.0, "", family.unet, named)
    except (
        TypeError
    ):  # 4.1.3 makes no (IA)^3 of any file, its own included: one that does nothing is given what is in it
        LycorisNetwork.apply_preset(EVERYTHING)
        on_input = any(float(t) for n, t in named.items() if n.endswith(".on_input"))
        network = create_lycoris(family.unet, 1.0, algo="ia3", train_on_input=on_input)
        network.apply_to()
        network.load_state_dict({**network.state_dict(), **named})  # a name that it has not is an error
        return network
    network.apply_to()
    return network


def _ours(base: Path, folder: Path, how: Mapping[str, Any]) -> dict[str, Any]:
    """Compare our merge of a file of LyCORIS's with its own."""
    ours, other = (load(str(base), dtype=torch.float32, device="cpu") for _ in range(2))
    before = _predicted(ours)
    LycorisNetwork.apply_preset(EVERYTHING)
    network = create_lycoris(other.unet, 1.0, linear_dim=3, linear_alpha=2.0, conv_dim=3, conv_alpha=2.0, **how)
    network.apply_to()
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    save_file({n: t.contiguous() for n, t in network.state_dict().items()}, folder / "y.safetensors")
    wanted = _predicted(other)
    lora, third = read_any_lora(folder / "y.safetensors"), load(str(base), dtype=torch.float32, device="cpu")
    lora.attach(ours.modules)
    found = _compared(wanted, _predicted(ours), before, len(network.loras))
    write_kohya(lora.layers, folder / "z.safetensors", ours.facts, biases=lora.biases, network="lycoris")
    try:
        _attached(third, folder / "z.safetensors")
    except (AttributeError, RuntimeError) as error:
        return {**found, "again refused": str(error)[:120]}
    return {**found, "again": float((_predicted(third) - wanted).abs().max())}


def _predicted(family: Family) -> Tensor:
    x_t = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return family.predict(x_t, torch.tensor([3, 700]), family.encode_text(["a red dog", "b"]))


def _compared(wanted: Tensor, found: Tensor, before: Tensor, layers: int) -> dict[str, Any]:
    difference, change = (float((other - wanted).abs().max()) for other in (found, before))
    return {"layers": layers, "difference": difference, "change": round(change, 4)}


if __name__ == "__main__":
    main()
