"""The names of layers: one table of what programs write, and the key maps of those that read."""

from __future__ import annotations

import pytest

from limner.export.lora_names import canonical, kohya_name, layout_of, split_name
from limner.export.programs import uses
from limner.families.recognise import FAMILIES, up_blocks

ATTENTION = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1"
# Names as they stand in published files; the right side follows from the numbering of SD's UNet with two layers per
# block (input block 0 is conv_in, then each level takes one number per layer and one for its downsampler).
NAMES = {
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q": f"{ATTENTION}.to_q",
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0": f"{ATTENTION}.to_out.0",
    "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_k": f"{ATTENTION}.to_k",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_out": f"{ATTENTION}.to_out.0",
    "lycoris_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_v": f"{ATTENTION}.to_v",
    "lora_unet_input_blocks_0_0": "unet.conv_in",
    "lora_unet_input_blocks_3_0_op": "unet.down_blocks.0.downsamplers.0.conv",
    "lora_unet_input_blocks_4_0_in_layers_2": "unet.down_blocks.1.resnets.0.conv1",
    "lora_unet_input_blocks_4_0_skip_connection": "unet.down_blocks.1.resnets.0.conv_shortcut",
    "lora_unet_middle_block_1_proj_in": "unet.mid_block.attentions.0.proj_in",
    "lora_unet_middle_block_2_out_layers_3": "unet.mid_block.resnets.1.conv2",
    "lora_unet_output_blocks_2_1_conv": "unet.up_blocks.0.upsamplers.0.conv",
    "lora_unet_output_blocks_2_2_conv": "unet.up_blocks.0.upsamplers.0.conv",
    "lora_unet_output_blocks_5_0_emb_layers_1": "unet.up_blocks.1.resnets.2.time_emb_proj",
    "lora_unet_output_blocks_8_1_transformer_blocks_0_ff_net_0_proj":
        "unet.up_blocks.2.attentions.2.transformer_blocks.0.ff.net.0.proj",
    "lora_unet_time_embed_2": "unet.time_embedding.linear_2",
    "lora_unet_label_emb_0_0": "unet.add_embedding.linear_1",
    "lora_unet_out_2": "unet.conv_out",
    "lora_te_text_model_encoder_layers_11_self_attn_q_proj": "text_encoder.encoder.layers.11.self_attn.q_proj",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1": "text_encoder.encoder.layers.0.mlp.fc1",
    "lora_te2_text_model_encoder_layers_31_self_attn_out_proj":
        "text_encoder_2.text_model.encoder.layers.31.self_attn.out_proj",
    "text_encoder.text_model.encoder.layers.0.self_attn.to_out": "text_encoder.encoder.layers.0.self_attn.out_proj",
    "text_encoder_2.encoder.layers.0.mlp.fc2": "text_encoder_2.text_model.encoder.layers.0.mlp.fc2",
    "clip_l.text_model.encoder.layers.3.mlp.fc2": "text_encoder.encoder.layers.3.mlp.fc2",
    "base_model.model.text_model.encoder.layers.0.mlp.fc1": "text_encoder.encoder.layers.0.mlp.fc1",
}  # fmt: skip
STRANGE = [
    "lora_unet_joint_blocks_0_context_block_attn_qkv", "lora_unet_double_blocks_0_img_attn_qkv", "transformer.blocks.0",
    "lora_te3_encoder_block_0", "cond_stage_model.transformer", "lora_unet", "", ".", "lora_unet_", "unet.x.y",
    "lora_unet_input_blocks_99_1_proj_in", "unet.text_model.encoder.layers.0.mlp.fc1",
]  # fmt: skip


def test_every_layouts_name_is_told() -> None:
    assert {name: canonical(name) for name in NAMES} == NAMES
    assert {name: canonical(name) for name in STRANGE} == dict.fromkeys(STRANGE)


@pytest.mark.parametrize(
    ("key", "layout", "role"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", "kohya", "A"),
        ("lora_unet_middle_block_1_proj_in.lora_up.weight", "kohya with original names", "B"),
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "LyCORIS", "hada_w1_a"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.diff_b", "LyCORIS", "diff_b"),
        ("lycoris_mid_block_attentions_0_proj_in.lokr_w2_b", "LyCORIS with diffusers' names", "lokr_w2_b"),
        ("unet.mid_block.attentions.0.proj_in.lora_A.weight", "diffusers", "A"),
        ("unet.mid_block.attentions.0.proj_in.lora_magnitude_vector", "diffusers", "output_magnitude"),
        ("unet.mid_block.attentions.0.proj_in.lora.up.weight", "diffusers before peft", "B"),
        ("mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
         "diffusers' attention processors", "A"),
        ("base_model.model.mid_block.attentions.0.proj_in.lora_B.default.weight", "peft", "B"),
        ("diffusion_model.middle_block.1.proj_in.lora_A.weight", "original names with dots", "A"),
        ("clip_g.text_model.encoder.layers.0.mlp.fc1.lora_down.weight", "OneTrainer", "A"),
    ],
)  # fmt: skip
def test_layouts_are_called_by_their_names(key: str, layout: str, role: str) -> None:
    assert layout_of([key]) == layout
    found = split_name(key)
    assert found is not None
    assert found[1] == role


@pytest.mark.parametrize("family", [name for name, known in FAMILIES.items() if known.kohya.prefixes])
def test_a_name_of_kohyas_leads_back_to_its_layer(family: str) -> None:
    kohya = FAMILIES[family].kohya
    parts = {"unet": [n for n in NAMES.values() if n.startswith("unet.") and "add_emb" not in n],
             "text_encoder": [n for n in NAMES.values() if n.startswith("text_encoder.")],
             "text_encoder_2": [n for n in NAMES.values() if n.startswith("text_encoder_2.")]}  # fmt: skip
    layers = {layer for part in kohya.prefixes for layer in parts[part]}
    names = {
        x: kohya_name(x, kohya.prefixes, original=kohya.original_names, up_blocks=up_blocks(family)) for x in layers
    }
    assert {layer: canonical(name) for layer, name in names.items()} == {layer: layer for layer in layers}
    assert len(set(names.values())) == len(layers)
    assert layout_of([f"{names['unet.conv_in']}.lora_up.weight"]) in ("kohya", "kohya with original names")


UNET = "mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
ORIGINAL = "middle_block_1_transformer_blocks_0_attn1_to_q"
DOTTED = "mid_block.attentions.0.transformer_blocks.0.attn1"
TEXT = "text_model_encoder_layers_0_self_attn_q_proj"
TEXT_DOTTED = "encoder.layers.0.self_attn.q_proj"
# What each program's own key map takes: comfy/lora.py (model_lora_keys_unet, model_lora_keys_clip) and
# comfy/weight_adapter/lora.py; A1111's extensions-builtin/Lora/networks.py; sd-scripts' networks/lora.py (02298e3);
# diffusers' loaders/lora_conversion_utils.py (0.42.1). The names were read there; A1111's file kinds were not.
KEY_MAPS = {
    f"lora_unet_{UNET}.lora_down.weight": "diffusers kohya A1111 ComfyUI",
    f"lora_unet_{ORIGINAL}.lora_up.weight": "diffusers kohya A1111 ComfyUI",
    f"lora_te_{TEXT}.lora_down.weight": "diffusers kohya A1111 ComfyUI",
    f"lora_te1_{TEXT}.lora_down.weight": "diffusers kohya A1111 ComfyUI",
    f"lora_te2_{TEXT}.lora_down.weight": "diffusers kohya A1111 ComfyUI",
    f"lora_unet_{UNET}.lora_mid.weight": "A1111 ComfyUI",
    f"lora_unet_{UNET}.hada_w1_a": "A1111 ComfyUI",
    f"lora_unet_{UNET}.lokr_w2_a": "A1111 ComfyUI",
    f"lora_unet_{UNET}.diff": "A1111 ComfyUI",
    f"lycoris_{UNET}.lokr_w1": "ComfyUI",
    f"diffusion_model.{DOTTED}.to_q.lora_down.weight": "ComfyUI",
    f"unet.{DOTTED}.to_q.lora_A.weight": "diffusers ComfyUI",
    f"unet.{DOTTED}.processor.to_q_lora.down.weight": "diffusers ComfyUI",
    f"unet.{DOTTED}.to_q.lora.up.weight": "diffusers ComfyUI",
    f"text_encoder.text_model.{TEXT_DOTTED}.lora_linear_layer.up.weight": "diffusers ComfyUI",
    f"text_encoder.{TEXT_DOTTED}.lora_A.weight": "diffusers",
    f"clip_l.text_model.{TEXT_DOTTED}.lora_down.weight": "",
    "bundle_emb.dog.clip_l": "",
}


def test_what_each_program_loads() -> None:
    found = {key: {use.program.split()[0] for use in uses([key]) if use.used} for key in KEY_MAPS}
    assert found == {key: set(programs.split()) for key, programs in KEY_MAPS.items()}


def test_a_strange_key_among_kohyas_makes_diffusers_refuse_the_file() -> None:
    keys = [f"lora_unet_{UNET}.lora_down.weight", f"lora_unet_{UNET}.lora_up.weight", "bundle_emb.dog.clip_l"]
    lines = {use.program: use.line for use in uses(keys)}
    assert lines["diffusers"] == "diffusers: none of 3 keys; refuses the file for bundle_emb.dog.clip_l"
    assert lines["ComfyUI"] == "ComfyUI: 2 of 3 keys; ignores bundle_emb.dog.clip_l"
