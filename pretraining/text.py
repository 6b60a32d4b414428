"""Stage `text`: the tokenizer, and a small CLIP whose text tower becomes the base's encoder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from pretraining import dataset
from pretraining.progress import Clock, autocast, device, set_rate, set_threads, warm_cosine

MAX_TOKENS, MAX_VOCABULARY = 32, 1900
START, END = "<|startoftext|>", "<|endoftext|>"
BATCH, GROUP, PEAK_RATE = 128, 4, 1e-3
MEAN = STD = (0.5, 0.5, 0.5)
# CLIP's own rule for splitting text into words.
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train_tokenizer(captions: list[str], folder: Path) -> CLIPTokenizer:
    """Train a byte-level BPE on the captions and write it as a CLIPTokenizer into `folder`.

    Every byte is a token, inside and at the end of a word, so any string can be spelled.
    """
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY,
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *("".join(m) for m in merges)]
    vocabulary = {token: i for i, token in enumerate([*dict.fromkeys(tokens), START, END])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    settings = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_TOKENS, "do_lower_case": True,
        "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END,
        "errors": "replace", "add_prefix_space": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    special = {name: settings[name] for name in settings if name.endswith("_token")}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    return CLIPTokenizer.from_pretrained(folder)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Return token ids (captions, 32), padded with the end token as SD does."""
    return tokenizer(
        captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


def without_padding(ids: Tensor) -> Tensor:
    """Cut the padding that no caption of the batch needs; with a causal encoder this is exact."""
    end = ids[:, -1:].amax()
    return ids[:, : int((ids != end).sum(-1).max()) + 1]


def build(tokenizer: CLIPTokenizer, seed: int = 0) -> CLIPModel:
    """Return the untrained image-text encoder of the base."""
    torch.manual_seed(seed)
    end = tokenizer.eos_token_id
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 256, "intermediate_size": 1024,
        "num_hidden_layers": 3, "num_attention_heads": 4, "projection_dim": 256,
        "max_position_embeddings": MAX_TOKENS, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": end, "pad_token_id": end,
    }  # fmt: skip
    vision = {
        "hidden_size": 192, "intermediate_size": 576, "num_hidden_layers": 6,
        "num_attention_heads": 6, "image_size": 64, "patch_size": 8, "projection_dim": 256,
    }  # fmt: skip
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=256))
    model.set_attn_implementation("eager")  # on the CPU its backward pass is twice as fast
    return model


def training_captions(pictures: dataset.Pictures) -> list[list[str]]:
    """Return five captions of every picture: four drawn ones and the full one."""
    return [[*record["captions"], record["full_caption"]] for record in pictures.records]


def alike_groups(pictures: dataset.Pictures) -> list[Tensor]:
    """Return the indices of pictures that share class, main colour and background.

    Within such a group only the small parts tell a caption from its neighbours, so a batch of
    groups teaches the encoder words that a batch at random would let it ignore.
    """
    groups: dict[tuple[str, str, str], list[int]] = {}
    for i, record in enumerate(pictures.records):
        groups.setdefault((record["noun"], record["main"], record["background"]), []).append(i)
    return [torch.tensor(group) for group in groups.values()]


def draw_indices(groups: list[Tensor]) -> Tensor:
    """Return one batch of picture indices: some groups, and as many pictures of each."""
    chosen = torch.randint(len(groups), (BATCH // GROUP,)).tolist()
    drawn = [groups[g][torch.randint(len(groups[g]), (GROUP,))] for g in chosen]
    return torch.cat(drawn).sort().values


def shifted(pixels: Tensor, by_px: int = 4) -> Tensor:
    """Return the pictures moved by a few pixels, edges repeated, half of them mirrored."""
    if torch.rand(()) < 0.5:
        pixels = pixels.flip(-1)
    padded = functional.pad(pixels, (by_px,) * 4, mode="replicate")
    y, x = torch.randint(0, 2 * by_px + 1, (2,)).tolist()
    return padded[..., y : y + pixels.shape[-2], x : x + pixels.shape[-1]]


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, ids: Tensor) -> Tensor:
    """Return InfoNCE in both directions; pairs with the same caption share the target."""
    logits = scale * images @ texts.T
    same = (ids[:, None] == ids[None]).all(-1).float()
    target = same / same.sum(-1, keepdim=True)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


@torch.no_grad()
def embed(model: CLIPModel, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit image and text embeddings."""
    out = model(input_ids=ids.to(device()), pixel_values=pixels.to(device()))
    return out.image_embeds.float().cpu(), out.text_embeds.float().cpu()


def recall(model: CLIPModel, tokenizer: CLIPTokenizer, pictures: dataset.Pictures) -> float:
    """Return how often the right one of 256 full captions is nearest to its picture."""
    model.eval()
    ids = tokenize(tokenizer, [r["full_caption"] for r in pictures.records[:256]])
    images, texts = embed(model, pictures.batch(range(256)), ids)
    model.train()
    return ((images @ texts.T).argmax(1) == torch.arange(256)).float().mean().item()


def train(
    model: CLIPModel,
    learning: list[torch.nn.Parameter],
    tokenizer: CLIPTokenizer,
    work: Path,
    clock: Clock,
    peak: float = PEAK_RATE,
) -> None:
    """Train the parameters `learning` to the end of the clock's time; writes work/image_text_encoder."""
    pictures, held_out = dataset.load(work, "train"), dataset.load(work, "held_out")
    ids = torch.stack([tokenize(tokenizer, variants) for variants in training_captions(pictures)])
    groups = alike_groups(pictures)
    optimizer = torch.optim.AdamW(learning, peak, (0.9, 0.98), weight_decay=0.05)
    if clock.state:
        model.load_state_dict(clock.state["model"])
        optimizer.load_state_dict(clock.state["optimizer"])
    torch.manual_seed(clock.step)
    while not clock.over:
        set_rate(optimizer, warm_cosine(clock, peak, warm_steps=50))
        chosen = draw_indices(groups)
        tokens = without_padding(ids[chosen, torch.randint(ids.shape[1], (BATCH,))]).to(device())
        pixels = shifted(pictures.batch(chosen)).to(device())
        with autocast():
            out = model(input_ids=tokens, pixel_values=pixels)
        scale = model.logit_scale.exp().clamp(max=100)
        loss = contrastive_loss(out.image_embeds.float(), out.text_embeds.float(), scale, tokens)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        if clock.tick(BATCH):
            clock.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
            clock.log(loss=loss.item(), recall_of_256=recall(model, tokenizer, held_out))
            clock.pause()
        elif clock.step % 25 == 0:
            clock.log(loss=loss.item())
    model.eval().save_pretrained(work / "image_text_encoder")


def run(work: Path, minutes: float = 22) -> None:
    """Train for `minutes` in all; ends with work/tokenizer and work/image_text_encoder."""
    set_threads()
    plain = [c for record in dataset.load(work, "train").records for c in record["captions"]]
    held_words = [r["full_caption"] for r in dataset.load(work, "held_out").records]
    tokenizer = train_tokenizer([*plain, *held_words], work / "tokenizer")
    model = build(tokenizer).to(device())
    train(model, list(model.parameters()), tokenizer, work, Clock(work / "text.pt", minutes))
