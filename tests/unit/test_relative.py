"""Changes made of the weight itself: each against what the method's own words say, written another way."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limner.adapters.deltas import Delta
from limner.adapters.relative import BOFT, IA3, OFT, GLoRA
from limner.errors import UserError
from limner.export.kohya_lora import write_kohya
from limner.export.lora_files import read_any_lora
from tests.lora_layouts import draw, save

NAME = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def turn(block: Tensor, limit: float = math.inf, length: float = 1.0) -> Tensor:
    """Cayley's transform of a block's skew part, cut to a share where all blocks together are too long."""
    Q, one = (block - block.T) * min(1.0, limit / length), torch.eye(len(block))
    return torch.linalg.solve(one - Q, one + Q)


def tuned(change: Delta, weight: Tensor) -> Tensor:
    return weight + torch.from_numpy(change.delta(weight.numpy()))


@pytest.mark.parametrize("inputs", [(5,), (5, 3, 3)])
@pytest.mark.parametrize("constraint", [0.0, 1e-2])
def test_oft_turns_outputs_in_blocks(inputs: tuple[int, ...], constraint: float) -> None:
    blocks, rescale, weight = torch.from_numpy(draw(3, 2, 2)), 1 + torch.from_numpy(draw(6)), torch.randn(6, *inputs)
    length = float((blocks - blocks.mT).norm())
    assert length > 6e-2
    R = torch.block_diag(*(turn(block, 6 * constraint or math.inf, length) for block in blocks))
    wanted = (rescale[:, None] * (R.T @ weight.flatten(1))).reshape(weight.shape)
    change = OFT(blocks.numpy(), constraint, rescale.numpy())
    torch.testing.assert_close(tuned(change, weight), wanted)
    assert torch.allclose(tuned(OFT(blocks.numpy()), weight).flatten(1).norm(), weight.norm()), "a turn keeps lengths"


def test_boft_turns_ever_farther_partners() -> None:
    """Stage i joins outputs that are 2**i * size / 2 apart, which a permutation brings side by side."""
    size, stages, outputs, weight = 4, 3, 16, torch.randn(16, 5)
    blocks = torch.from_numpy(draw(stages, outputs // size, size, size))
    wanted = weight
    for i in range(stages):
        far = 2**i * size // 2
        order = [at + half * far for start in range(0, outputs, 2 * far) for at in range(start, start + far)
                 for half in (0, 1)]  # fmt: skip
        P = torch.eye(outputs)[order]
        wanted = P.T @ torch.block_diag(*map(turn, blocks[i])) @ P @ wanted
    torch.testing.assert_close(tuned(BOFT(blocks.numpy()), weight), wanted)


@pytest.mark.parametrize("on_input", [False, True])
def test_ia3_multiplies_outputs_or_inputs(on_input: bool) -> None:
    numbers, weight, x = torch.from_numpy(draw(4)), torch.randn(4, 4, 3, 3), torch.randn(2, 4, 6, 6)
    factor = (1 + numbers)[:, None, None]
    wanted = F.conv2d(x * factor, weight) if on_input else F.conv2d(x, weight) * factor
    change = IA3(numbers.reshape(1, 4, 1, 1).numpy(), on_input)
    torch.testing.assert_close(F.conv2d(x, tuned(change, weight)), wanted)


@pytest.mark.parametrize("old", [False, True])
def test_glora_is_a_layer_of_another_input_and_a_lora(old: bool, tmp_path: Path) -> None:
    """W (x + A x) + B x, under today's names and those of before LyCORIS 2."""
    (a_up, a_down), (b_up, b_down) = (
        (torch.randn(4, 2), torch.randn(2, 4)),
        (torch.randn(6, 2), torch.randn(2, 4, 3, 3)),
    )
    today = {"a1": a_up[..., None, None], "a2": a_down[..., None, None], "b1": b_up[..., None, None], "b2": b_down}
    renamed = {"a1": "a2", "a2": "a1", "b1": "b2", "b2": "b1"}
    parts = {f"{NAME}.{renamed[n] if old else n}.weight": t.numpy() for n, t in today.items()}
    lora = read_any_lora(save({**parts, f"{NAME}.alpha": np.array(1.0, np.float32)}, tmp_path / "x.safetensors"))
    weight, x = torch.randn(6, 4, 3, 3), torch.randn(2, 4, 6, 6)
    ax = torch.einsum("ir,rj,bjhw->bihw", a_up, a_down, x)
    b = torch.einsum("or,rikl->oikl", b_up, b_down)
    wanted = F.conv2d(x, weight) + 0.5 * (F.conv2d(ax, weight) + F.conv2d(x, b))
    torch.testing.assert_close(F.conv2d(x, tuned(lora.layers[LAYER], weight)), wanted, rtol=1e-4, atol=1e-4)
    assert lora.layers[LAYER].shape == (6, 4, 3, 3)


def test_turns_themselves_are_read_and_nothing_else_by_their_name(tmp_path: Path) -> None:
    blocks, weight = torch.from_numpy(draw(3, 2, 2)), torch.randn(6, 5)
    turns = torch.stack([turn(block) for block in blocks])
    file = save({f"{NAME}.oft_diag": turns.numpy()}, tmp_path / "x.safetensors")
    change = read_any_lora(file).layers[LAYER]
    torch.testing.assert_close(tuned(change, weight), tuned(OFT(blocks.numpy()), weight))
    save({f"{NAME}.oft_diag": (turns - torch.eye(2)).numpy()}, file)
    with pytest.raises(UserError, match="has tensors that do not belong together .oft_diag"):
        read_any_lora(file)


def test_what_does_nothing_is_known_to_do_nothing() -> None:
    zeros = np.zeros((2, 2, 2), np.float32)
    still = [OFT(zeros), OFT(zeros, rescale=np.ones(4, np.float32)), BOFT(zeros[None]), IA3(zeros[0, 0], False),
             GLoRA({"a1.weight": draw(4, 2), "a2.weight": 0 * draw(2, 4), "b1.weight": draw(6, 2),
                    "b2.weight": 0 * draw(2, 4)}, 1.0)]  # fmt: skip
    assert [change.norm() for change in still] == [0.0] * 5
    moving = [OFT(zeros, rescale=np.full(4, 2, np.float32)), OFT(zeros, role="oft_diag"), IA3(zeros[0, 0] + 1, True)]
    assert all(math.isnan(change.norm()) for change in moving)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"oft_blocks": (3, 2, 1)}, "do not belong together"),
        ({"oft_blocks": (3, 2, 2), "rescale": (5,)}, "do not belong together"),
        ({"oft_blocks": (2, 3, 3, 3)}, "do not belong together"),
        ({"oft_blocks": (2, 1, 2, 2)}, "do not belong together"),
        ({"oft_blocks": (3, 2, 2), "diff": (6, 6)}, "do not belong together"),
        ({"on_input": (1,)}, "do not belong together"),
        ({"weight": (4,)}, "is not a LoRA that Limner reads"),
        ({"a1.weight": (4, 2), "a2.weight": (2, 4), "b1.weight": (6, 2)}, "do not belong together"),
        (
            {"a1.weight": (4, 2), "a2.weight": (2, 4), "b1.weight": (6, 2), "b2.weight": (2, 5)},
            "do not belong together",
        ),
    ],
)
def test_tensors_that_fit_no_change_are_one_line(
    tensors: dict[str, tuple[int, ...]], message: str, tmp_path: Path
) -> None:
    file = save({f"{NAME}.{role}": draw(*shape) for role, shape in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=message):
        read_any_lora(file)


def test_an_oft_of_sd_scripts_is_refused_because_it_turns_biases(tmp_path: Path) -> None:
    blocks = {f"{NAME}.oft_blocks": draw(3, 2, 2), f"{NAME}.alpha": np.array(0.1, np.float32)}
    file = save(blocks, tmp_path / "x.safetensors", {"ss_network_module": "networks.oft"})
    with pytest.raises(UserError, match="is an OFT of sd-scripts, which turns biases too"):
        read_any_lora(file)


def test_the_header_names_lycoriss_algorithm(tmp_path: Path) -> None:
    for change, algorithm in (
        (OFT(draw(3, 2, 2)), "diag-oft"),
        (BOFT(draw(1, 3, 2, 2)), "boft"),
        (IA3(draw(6), True), "ia3"),
    ):
        write_kohya({LAYER: change}, tmp_path / "x.safetensors", {"family": "sd15"}, network="lycoris")
        said = read_any_lora(tmp_path / "x.safetensors").metadata
        assert (said["ss_network_module"], said["ss_network_args"]) == ("lycoris.kohya", f'{{"algo": "{algorithm}"}}')
