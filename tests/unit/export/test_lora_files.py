"""LoRA files that are strange, old, contradict themselves or mean harm: each is read right, or refused in one line."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from limner.adapters.deltas import Difference, DoRA, LowRank
from limner.adapters.relative import ANY
from limner.errors import UserError
from limner.export.lora_files import read_any_lora
from limner.export.old_loras import UNET
from limner.inspecting import inspect
from tests.lora_layouts import draw
from tests.lora_layouts import save as save_arrays

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
KOHYA = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
CONV = "lora_unet_mid_block_resnets_0_conv1"
PLAIN = {f"{KOHYA}.lora_down.weight": draw(4, 8), f"{KOHYA}.lora_up.weight": draw(6, 4)}
PEFT = {f"{LAYER}.lora_A.weight": draw(4, 8), f"{LAYER}.lora_B.weight": draw(6, 4)}
ALPHA = {f"{KOHYA}.alpha": np.float32(8.0).reshape(())}


def read(tensors: dict[str, Any], folder: Path, metadata: dict[str, str] | None = None, **named: Any) -> Any:
    return read_any_lora(save_arrays(tensors, folder / "x.safetensors", metadata), **named)


def test_alpha_comes_from_the_tensor_else_the_header_else_it_is_the_rank(tmp_path: Path) -> None:
    peft = {"unet.r": 4, "unet.lora_alpha": 2, "unet.alpha_pattern": {}}
    adapter = {"lora_adapter_metadata": json.dumps(peft)}
    assert read(PLAIN | ALPHA, tmp_path).layers[LAYER].scale == 2.0
    assert read(PEFT, tmp_path, adapter).layers[LAYER].scale == 0.5
    rslora = {"lora_adapter_metadata": json.dumps({**peft, "unet.use_rslora": True})}
    assert read(PEFT, tmp_path, rslora).layers[LAYER].scale == 1.0  # 2 / sqrt(4)
    own = {"lora_adapter_metadata": json.dumps({**peft, "unet.alpha_pattern": {"attn2.to_k": 12}})}
    assert read(PEFT, tmp_path, own).layers[LAYER].scale == 3.0
    silent = read(PLAIN, tmp_path)
    assert (silent.layers[LAYER].scale, silent.alpha_is_assumed) == (1.0, True)
    assert read(PLAIN | ALPHA, tmp_path, alpha=1.0).layers[LAYER].scale == 0.25


def test_peft_keeps_alpha_beside_the_weights(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    layer = LAYER.removeprefix("unet.")
    named = {f"base_model.model.{layer}.lora_{x}.weight": PEFT[f"{LAYER}.lora_{x}.weight"] for x in "AB"}
    assert read_any_lora(save_arrays(named, tmp_path / "adapter_model.safetensors")).layers[LAYER].scale == 2.0


def test_an_alpha_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    said = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 16})}
    with pytest.raises(UserError, match=rf"alpha tensor says 8, metadata says 16 for {LAYER}.*--alpha"):
        read(PLAIN | ALPHA, tmp_path, said)
    kohya = {"ss_network_alpha": "16", "ss_network_dim": "4"}
    with pytest.raises(UserError, match="alpha tensor says 8, metadata says 16"):
        read(PLAIN | ALPHA, tmp_path, kohya)
    assert read(PLAIN | ALPHA, tmp_path, kohya, alpha=16.0).layers[LAYER].scale == 4.0
    assert read(PLAIN | ALPHA, tmp_path, {**kohya, "ss_network_dim": "64"}).layers[LAYER].scale == 2.0, "it was resized"


def test_lengths_of_dora_lie_along_outputs_or_inputs(tmp_path: Path) -> None:
    """LyCORIS's of old are (1, in), newer ones (out, 1), peft's (out,) and of a convolution (1, out, 1, 1)."""
    weight = draw(6, 8)
    for shape, axis in (((1, 8), 1), ((6, 1), 0)):
        dora = read(PLAIN | {f"{KOHYA}.dora_scale": 1 + abs(draw(*shape))}, tmp_path).layers[LAYER]
        assert isinstance(dora, DoRA)
        assert dora.axis == axis
        tuned = weight + dora.delta(weight)
        np.testing.assert_allclose(np.linalg.norm(tuned, axis=1 - axis), dora.magnitude, rtol=1e-5)
    peft = {"unet.conv_in.lora_A.weight": draw(2, 6, 3, 3), "unet.conv_in.lora_B.weight": draw(6, 2, 1, 1)}
    dora = read(peft | {"unet.conv_in.lora_magnitude_vector": 1 + abs(draw(1, 6, 1, 1))}, tmp_path).layers[
        "unet.conv_in"
    ]
    assert isinstance(dora, DoRA)
    assert dora.axis == 0


def test_a_core_of_locon_is_a_plain_lora(tmp_path: Path) -> None:
    down, mid, up = draw(2, 4, 1, 1), draw(2, 2, 3, 3), draw(6, 2, 1, 1)
    names = {f"{CONV}.lora_{x}.weight": t for x, t in (("down", down), ("mid", mid), ("up", up))}
    lora = read(names, tmp_path)
    (change,) = lora.layers.values()
    assert isinstance(change, LowRank)
    assert lora.is_low_rank
    x = torch.randn(1, 4, 5, 5)  # the three convolutions one after the other, as LoCon computes them
    wanted = F.conv2d(F.conv2d(F.conv2d(x, torch.tensor(down)), torch.tensor(mid), padding=1), torch.tensor(up))
    whole = F.conv2d(x, lora.delta("unet.mid_block.resnets.0.conv1"), padding=1)
    torch.testing.assert_close(whole, wanted, rtol=1e-5, atol=1e-5)


def test_whole_differences_and_biases(tmp_path: Path) -> None:
    norm = "lora_unet_mid_block_attentions_0_norm"
    lora = read({f"{KOHYA}.diff": draw(6, 8), f"{KOHYA}.diff_b": draw(6), f"{norm}.w_norm": draw(8),
                 f"{norm}.b_norm": draw(8)}, tmp_path)  # fmt: skip
    assert {type(change) for change in lora.layers.values()} == {Difference}
    assert set(lora.biases) == set(lora.layers) == {LAYER, "unet.mid_block.attentions.0.norm"}
    assert not lora.is_low_rank


def test_words_that_come_along(tmp_path: Path) -> None:
    one_trainer = read(PLAIN | {"bundle_emb.<dog>.clip_l": draw(2, 8), "bundle_emb.<dog>.clip_g": draw(2, 9)}, tmp_path)
    assert {word: set(parts) for word, parts in one_trainer.words.items()} == {
        "<dog>": {"text_encoder", "text_encoder_2"}
    }


def test_cloneofsimos_numbers_are_the_layers_of_then(tmp_path: Path) -> None:
    """Widths as SD 1.5 has them: down 320, 640, 1280, up 1280, 640, 320, and the middle block last."""
    sides = [320] * 2 + [640] * 2 + [1280] * 5 + [640] * 3 + [320] * 3 + [1280]
    tensors, metadata = {}, {"<s1>": "<embed>"}
    for index, layer in enumerate(UNET):
        side = sides[index // 9]
        out, inputs = (
            (8 * side if "ff" in layer else side),
            768 if layer.endswith(("attn2.to_k", "attn2.to_v")) else side,
        )
        tensors |= {f"unet:{index}:up": np.ones((out, 1)), f"unet:{index}:down": np.ones((1, inputs))}
    tensors |= {
        f"text_encoder:{i}:{x}": np.ones((768, 1) if x == "up" else (1, 768)) for i in range(8) for x in ("up", "down")
    }
    lora = read({**tensors, "<s1>": draw(1, 768)}, tmp_path, metadata)
    assert (lora.layout, lora.family, list(lora.words)) == ("cloneofsimo", "sd15", ["<s1>"])
    assert lora.layers["unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v"].shape == (1280, 768)
    assert lora.layers["unet.up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj"].shape == (2560, 320)
    assert lora.layers["text_encoder.encoder.layers.1.self_attn.out_proj"].shape == (768, 768)
    del tensors["unet:3:up"], tensors["unet:3:down"]
    with pytest.raises(UserError, match=r"do not fit \(first key that does not belong: unet:0:down\)"):
        read(tensors, tmp_path)


def test_an_old_bin_file_is_read_and_pickled_code_is_never_run(tmp_path: Path) -> None:
    torch.save({name: torch.tensor(array) for name, array in PLAIN.items()}, tmp_path / "a.bin")
    assert list(read_any_lora(tmp_path / "a.bin").layers) == [LAYER]

    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "run",))

    torch.save({**{n: torch.tensor(a) for n, a in PLAIN.items()}, "x": Harm()}, tmp_path / "b.bin")
    for reader in (read_any_lora, inspect):
        with pytest.raises(UserError, match=r"contains pickled code \(.*\) and was not loaded"):
            reader(tmp_path / "b.bin")
    assert not (tmp_path / "run").exists()


BROKEN = {
    "half": ({f"{KOHYA}.lora_down.weight": draw(4, 8)}, "has an A and no B"),
    "other half": ({f"{KOHYA}.lora_up.weight": draw(4, 8)}, "has a B and no A"),
    "ranks": (PLAIN | {f"{KOHYA}.lora_up.weight": draw(6, 3)}, "do not belong together"),
    "loha": ({f"{KOHYA}.hada_w1_a": draw(6, 2), f"{KOHYA}.hada_w1_b": draw(2, 8)}, "do not belong together"),
    "lokr": ({f"{KOHYA}.lokr_w1": draw(2, 2), f"{KOHYA}.lokr_w2_a": draw(2, 2)}, "do not belong together"),
    "magnitude": (PLAIN | {f"{KOHYA}.dora_scale": draw(1, 5)}, "do not belong together"),
    "alone": (ALPHA, "do not belong together"),
    "not finite": (PLAIN | {f"{KOHYA}.lora_up.weight": np.full((6, 4), np.nan)}, "is not finite"),
    "another family": ({"lora_unet_joint_blocks_0_x.lora_down.weight": draw(4, 8)},
                       "1 of 1 keys do not fit .first key .*joint_blocks.*looks like a LoRA for SD3"),
    "some strange": (PLAIN | {"lora_unet_extra_layer.lora_down.weight": draw(4, 8)},
                     "1 of 3 keys do not fit .first key that does not belong: lora_unet_extra_layer"),
    "a model": ({"model.diffusion_model.input_blocks.0.0.weight": draw(4, 4)}, "1 of 1 keys do not fit"),
    "twice": (PLAIN | PEFT, "2 of 4 keys do not fit"),
    "nothing": ({}, "0 of 0 keys do not fit"),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_file_that_does_not_fit_is_one_line(tensors: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(tensors, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_header_that_claims_too_much_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    with pytest.raises(UserError, match=r"its header claims 1099511627776 bytes, at most"):
        read_any_lora(path)


def whole(prefix: str, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> bytes:
    return save({f"{prefix}{name}": torch.randn(shape) for name, shape in shapes.items()}, metadata)


FILES = [
    save({name: torch.tensor(array) for name, array in (PLAIN | ALPHA).items()},
         {"ss_network_dim": "4", "limner": '{"token": "sks"}'}),
    whole(f"{CONV}.hada_", {"w1_a": (2, 4), "w1_b": (2, 4), "t1": (2, 2, 3, 3), "w2_a": (2, 4), "w2_b": (2, 4),
                            "t2": (2, 2, 3, 3)}),
    whole(f"{KOHYA}.lokr_", {"w1": (2, 2), "w2_a": (3, 2), "w2_b": (2, 4)}),
    whole(f"{LAYER}.lora_", {"A.weight": (2, 8), "B.weight": (6, 2), "magnitude_vector": (6,)},
          {"lora_adapter_metadata": '{"unet.r": 2, "unet.lora_alpha": 4}'}),
    whole("", {"unet:0:up": (4, 2), "unet:0:down": (2, 4), "emb_params": (2, 768)}),
    whole("", {"emb_params": (2, 768)}),
]  # fmt: skip


@given(data=st.data())
def test_no_damage_does_more_than_be_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Bytes are changed, numbers of the header replaced, the end cut off: it is read, or it is a UserError, at once."""
    whole = bytearray(data.draw(st.sampled_from(FILES)))
    length = int.from_bytes(whole[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 8 + length - 1))
        whole[at : at + 1] = bytes([data.draw(st.sampled_from(list(b'0123456789-[]{}",:FBHUA\x00\xff')))])
    cut = data.draw(st.integers(0, len(whole)) | st.just(len(whole)))
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(whole[:cut])
    started, lines = time.process_time(), list[str]()
    for reader in (read_any_lora, inspect):
        try:
            reader(path)
        except UserError as error:
            lines.append(str(error))
    assert time.process_time() - started < 2
    assert not any("\n" in line.strip() for line in lines)


SHAPES = st.lists(st.integers(0, 5), min_size=0, max_size=4)
ENDS = ["lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale", "diff", "diff_b", "w_norm",
        "scalar", *(f"hada_{x}" for x in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
        *(f"lokr_{x}" for x in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")), "oft_blocks", "oft_diag", "rescale",
        "weight", "on_input", "a1.weight", "a2.weight", "b1.weight", "b2.weight"]  # fmt: skip


@given(parts=st.dictionaries(st.sampled_from(ENDS), SHAPES, min_size=1, max_size=5))
def test_no_set_of_tensors_does_more_than_be_refused(
    parts: dict[str, list[int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What is read can be used: its norm and its change of weight can be computed."""
    path = tmp_path_factory.getbasetemp() / "parts.safetensors"
    path.write_bytes(save({f"{KOHYA}.{end}": torch.ones(shape) for end, shape in parts.items()}))
    try:
        lora = read_any_lora(path)
    except UserError:
        return
    inspect(path)
    for change in lora.layers.values():
        shape = tuple(3 if side == ANY else side for side in change.shape)
        assert change.delta(np.ones(shape, np.float32)).shape == shape
        assert change.norm() >= 0 or change.needs_weight


SETTINGS = b'{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"attn1.*to_q": 3}, "use_rslora": true}'


@given(data=st.data())
def test_no_damage_of_pefts_folder_does_more_than_be_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Its settings are another program's text, and its weights another program's names."""
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    folder.mkdir(exist_ok=True)
    settings = bytearray(SETTINGS)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(settings) - 1))
        settings[at : at + 1] = data.draw(
            st.binary(max_size=2) | st.sampled_from([b"*", b"(", b")*", b"[]", b"{", b"\xff"])
        )
    (folder / "adapter_config.json").write_bytes(settings)
    end = data.draw(st.sampled_from(["lora_A.weight", "lora_B.weight", "oft_R.weight", "hada_w1_a", ""]))
    name = data.draw(st.sampled_from([LAYER.removeprefix("unet."), "conv_in", "", "encoder.layers.0.mlp.fc1"]))
    held = {f"base_model.model.{LAYER.removeprefix('unet.')}.lora_{x}.weight": torch.ones(2, 2) for x in "AB"}
    (folder / "adapter_model.safetensors").write_bytes(
        save({**held, f"base_model.model.{name}.{end}": torch.ones(2, 2)})
    )
    for reader in (read_any_lora, inspect):
        with suppress(UserError):
            reader(folder)
