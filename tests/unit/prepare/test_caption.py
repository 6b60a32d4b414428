"""Captions by a model: resumable, outside the pictures' folder, and read back by the check."""

import json

import pytest
import torch
from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

from limner.errors import UserError
from limner.pictures.spec import Pictures
from limner.prepare.caption import caption_pictures, load_captioner
from limner.prepare.check import check_pictures

SPEC = Pictures()


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """Return the folder of a very small BLIP with random weights, in the published layout."""
    folder = tmp_path_factory.mktemp("blip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", "a", "red", "dog", "on", "grass"]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 5, "eos_token_id": 3, "pad_token_id": 0, "sep_token_id": 3}
    config = BlipConfig(
        text_config={**small, **special, "vocab_size": len(words), "encoder_hidden_size": 16},
        vision_config={**small, "image_size": 32, "patch_size": 8},
    )
    BlipForConditionalGeneration(config).save_pretrained(folder)
    processor = BlipProcessor(
        BlipImageProcessor(size={"height": 32, "width": 32}), BertTokenizerFast(str(folder / "vocab.txt"))
    )
    processor.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")
def test_a_model_from_a_folder_captions_every_picture(blip, make_folder, tmp_path):
    folder = make_folder(3)
    out = caption_pictures(folder, load_captioner(str(blip)), tmp_path / "c" / "captions.jsonl", spec=SPEC)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["file_name"] for row in rows] == ["000.png", "001.png", "002.png"]
    assert all(row["text"] for row in rows)
    spec = Pictures(captions_file=out, prefix="{token},")
    checked = check_pictures(folder, spec, resolution_px=32)
    assert [e.caption for e in checked.examples] == [f"sks, {row['text']}" for row in rows]


def test_a_stopped_run_goes_on_where_it_was(make_folder, tmp_path):
    folder, out = make_folder(4), tmp_path / "captions.jsonl"
    asked = []

    def captioner(image):
        asked.append(image.size)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return f"caption {len(asked)}"

    with pytest.raises(KeyboardInterrupt):
        caption_pictures(folder, captioner, out, spec=SPEC)
    assert not out.exists()
    with (tmp_path / "captions.jsonl.part").open("a") as part:
        part.write('{"file_name": "cut')
    seen = []
    caption_pictures(folder, captioner, out, spec=SPEC, progress=lambda done, of: seen.append((done, of)))
    rows = [json.loads(line)["text"] for line in out.read_text(encoding="utf-8").splitlines()]
    assert rows == ["caption 1", "caption 2", "caption 4", "caption 5"]
    assert seen == [(3, 4), (4, 4)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["captions.jsonl", "pictures"]


def test_what_cannot_be_done_is_said(make_folder, tmp_path):
    folder = make_folder(1)
    (folder / "bad.png").write_bytes(b"text")
    with pytest.raises(UserError, match="bad.png: is not a picture but text. Find all such files with: limner check"):
        caption_pictures(folder, lambda image: "x", tmp_path / "c.jsonl", spec=SPEC)
    with pytest.raises(UserError, match="captioner 'nowhere/nothing': cannot be loaded"):
        load_captioner("nowhere/nothing")
    with pytest.raises(UserError, match="captions_file=.*none.jsonl: there is no such file"):
        check_pictures(make_folder(1, name="b"), Pictures(captions_file=tmp_path / "none.jsonl"), resolution_px=32)
