"""Strengths: what is written for parts of the model, and where it counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from limner.adapters.strength import Strength, check_parts, parse_strength
from limner.cli.words import file_and_strength
from limner.errors import UserError

LAYERS = {
    "unet.down_blocks.1.attentions.0.proj_in": "down.1",
    "unet.mid_block.resnets.0.conv1": "mid",
    "unet.up_blocks.1.resnets.0.conv1": "up.1",
    "unet.up_blocks.2.resnets.0.conv1": "up",
    "unet.conv_in": "unet",
    "text_encoder.encoder.layers.0.self_attn.q_proj": "text_encoder",
    "text_encoder_2.text_model.encoder.layers.0.mlp.fc1": "text",
}


def test_the_closest_name_counts() -> None:
    numbers = {name: float(i + 2) for i, name in enumerate(LAYERS.values())}
    strength = Strength(0.5, numbers)
    assert {layer: strength.of(layer) for layer in LAYERS} == {layer: numbers[name] for layer, name in LAYERS.items()}
    assert all(Strength(0.5).of(layer) == 0.5 for layer in LAYERS)
    assert Strength(0.5, {"unet": 0.0}).of("unet.up_blocks.1.resnets.0.conv1") == 0
    assert Strength(0.5, {"unet": 0.0}).of("text_encoder_2.x") == 0.5


def test_what_is_said_is_read_again() -> None:
    for strength in (
        Strength(),
        Strength(-0.8),
        Strength(0.8, {"text": 0.5, "up.1": 0.0}),
        Strength(1.0, {"mid": 2.0}),
    ):
        assert parse_strength(str(strength), "x") == strength
    assert Strength(0.8).said == 0.8
    assert Strength(0.8, {"mid": 0.0}).said == "0.8,mid=0"


def test_words_of_the_command_line(tmp_path: Path) -> None:
    assert file_and_strength("a.safetensors") == (Path("a.safetensors"), Strength())
    assert file_and_strength("C:a.safetensors:0.5,up.1=0") == (Path("C:a.safetensors"), Strength(0.5, {"up.1": 0.0}))
    (tmp_path / "a:1").touch()
    assert file_and_strength(str(tmp_path / "a:1")) == (tmp_path / "a:1", Strength())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.5,0.6", "'0.6' is one too many"),
        ("up=1,up=2", "'up=2' is one too many"),
        ("up=high", "'high' is not a number. Write FILE:0.8, or FILE:0.8,text=0.5"),
        ("inf", "'inf' is not a number"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"--adapter f:{text}: {message}"):
        parse_strength(text, f"--adapter f:{text}")


def test_a_part_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UserError, match=r"f: there is no part 'up.7'. The parts are down, down.1, mid, .* up.2"):
        check_parts(Strength(1.0, {"up.7": 0.0}), LAYERS, "f")
    check_parts(Strength(1.0, {"up.2": 0.0, "text": 1.0}), LAYERS, "f")
