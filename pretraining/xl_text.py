"""Stage `xl_text`: render large pictures; a second text encoder learns from the first; both read all captions."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from pretraining import dataset
from pretraining.progress import Clock, autocast, device, set_rate, set_threads, warm_cosine, write_atomically
from pretraining.text import tokenize, without_padding
from pretraining.views import LARGE_PX

TRAIN, HELD_OUT, CAPTIONS = 5000, 400, 2
WIDTH, BATCH, PEAK_RATE = 192, 128, 2e-3


def folder_of(work: Path) -> Path:
    """Return where the stages of the XL pair keep what they make."""
    return work / "xl"


def build_second(first: CLIPTextConfig) -> CLIPTextModelWithProjection:
    """Return the untrained second text encoder: narrower than the first, pooled in the same space."""
    like = first.to_dict()
    torch.manual_seed(0)
    config = {
        **like,
        "dtype": "float32",
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_attention_heads": WIDTH // 64,
    }
    model = CLIPTextModelWithProjection(CLIPTextConfig(**config))
    model.set_attn_implementation("eager")  # on the CPU its backward pass is twice as fast
    return model


@torch.no_grad()
def read(model: CLIPModel | CLIPTextModelWithProjection, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the states before the last layer and the pooled text, which for the first encoder is a unit vector."""
    hidden, pooled = [], []
    for some in ids.split(256):
        with autocast():
            if isinstance(model, CLIPModel):
                said = model.text_model(some.to(device()), output_hidden_states=True)
                made = functional.normalize(model.text_projection(said.pooler_output).float(), dim=-1)
            else:
                said = model(some.to(device()), output_hidden_states=True)
                made = said.text_embeds
        hidden.append(said.hidden_states[-2].bfloat16().cpu())
        pooled.append(made.float().cpu())
    return torch.cat(hidden), torch.cat(pooled)


def load_second(work: Path, base: Path) -> CLIPTextModelWithProjection:
    """Return the trained second encoder."""
    model = build_second(CLIPModel.from_pretrained(base / "image_text_encoder").config.text_config)
    saved = torch.load(folder_of(work) / "text.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(saved["state"]["model"])
    return model.eval()


def _train(second: CLIPTextModelWithProjection, clock: Clock, ids: Tensor, wanted: Tensor) -> None:
    """Teach the second encoder to pool a caption as the first one does, whose space is that of the image tower."""
    optimizer = torch.optim.AdamW(second.parameters(), PEAK_RATE, (0.9, 0.98), weight_decay=0.05)
    if clock.state:
        second.load_state_dict(clock.state["model"])
        optimizer.load_state_dict(clock.state["optimizer"])
    torch.manual_seed(clock.step)
    while not clock.over:
        set_rate(optimizer, warm_cosine(clock, PEAK_RATE, warm_steps=50))
        chosen = torch.randint(len(ids), (BATCH,))
        with autocast():
            made = second(without_padding(ids[chosen]).to(device())).text_embeds
        loss = functional.mse_loss(made.float(), wanted[chosen].to(device()))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(second.parameters(), 1.0)
        optimizer.step()
        if clock.tick(BATCH):
            clock.save({"model": second.state_dict(), "optimizer": optimizer.state_dict()})
            clock.log(loss=loss.item())
            clock.pause()


def run(work: Path, minutes: float = 1.5, *, base: Path) -> None:
    """Train for `minutes` in all; ends with every caption read by both encoders."""
    from pretraining import pictures  # DiceBear, which no other stage of the pair needs

    set_threads()
    folder = folder_of(work)
    pictures.render(folder, "held_out", HELD_OUT, LARGE_PX)
    pictures.render(folder, "train", TRAIN, LARGE_PX)
    rows: dict[str, int] = {"": 0}
    which = [
        [rows.setdefault(caption, len(rows)) for caption in record["captions"][:CAPTIONS]]
        for record in dataset.load(folder, "train").records
    ]
    first = CLIPModel.from_pretrained(base / "image_text_encoder", dtype=torch.float32).to(device()).eval()
    ids = tokenize(CLIPTokenizer.from_pretrained(base / "tokenizer"), list(rows))
    hidden, pooled = read(first, ids)
    second = build_second(first.config.text_config).to(device())
    unit = pooled.shape[-1] ** 0.5  # entries of about 1, as the UNet likes them
    clock = Clock(folder / "text.pt", minutes)
    _train(second, clock, ids, pooled * unit)
    more, own = read(second.eval(), ids)
    clock.log(cosine=functional.cosine_similarity(own, pooled).mean().item())
    made = {"hidden": torch.cat([hidden, more], -1), "pooled": own.bfloat16(), "which": torch.tensor(which)}
    write_atomically(folder / "captions.pt", made)
