"""Stage `judge`: a network that never conditions the UNet reads captions and attributes of pictures."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from pretraining import dataset
from pretraining.progress import Clock, device, set_rate, set_threads, warm_cosine
from pretraining.text import shifted
from pretraining.world import COLOURS, STYLES

BATCH, PEAK_RATE, SEED, MAX_WORDS = 64, 1.5e-3, 77, 32
ROLES = ("headgear", "eyes", "mouth")


def classes() -> dict[str, list[str]]:
    """Return the answers to each question about a picture; "" means that there is none."""
    answers = {"noun": list(STYLES), "main": list(COLOURS), "background": list(COLOURS)}
    for role in ROLES:
        phrases = {
            phrase
            for spec in STYLES.values()
            for part, words in spec.parts.items()
            if spec.roles.get(part) == role
            for phrase in words.values()
        }
        answers[role] = ["", *sorted(phrases)]
    return answers


def truth(record: dict[str, object]) -> list[int]:
    """Return the index of the right answer to each question."""
    roles = record["roles"]
    return [
        answers.index(roles.get(question, "") if question in ROLES else record[question])
        for question, answers in classes().items()
    ]


class Words:
    """A word-level vocabulary: the judge shares no tokenizer with the base."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self._rows = {word: i + 2 for i, word in enumerate(words)}

    def __call__(self, captions: list[str]) -> Tensor:
        """Return word indices (captions, 32): 0 is padding, 1 an unknown word."""
        rows = torch.zeros(len(captions), MAX_WORDS, dtype=torch.long)
        for i, caption in enumerate(captions):
            found = [self._rows.get(w.strip(","), 1) for w in caption.split()][:MAX_WORDS]
            rows[i, : len(found)] = torch.tensor(found)
        return rows


def _stage(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(8, after), nn.ReLU(),
    )  # fmt: skip


class Judge(nn.Module):
    """A convolutional image tower with answers to questions, and a recurrent text tower."""

    def __init__(self, words: int) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 192)
        self.image = nn.Sequential(*(_stage(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)))
        self.pool = nn.Sequential(nn.Flatten(), nn.Linear(192 * 16, 320), nn.ReLU())
        self.image_out = nn.Linear(320, 128)
        self.heads = nn.ModuleList(nn.Linear(320, len(a)) for a in classes().values())
        self.words = nn.Embedding(words + 2, 96, padding_idx=0)
        self.read = nn.GRU(96, 160, batch_first=True, bidirectional=True)
        self.text_out = nn.Linear(320, 128)
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def look(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return unit image embeddings and the logits of each question; `pixels` in [-1, 1]."""
        features = self.pool(self.image(pixels))
        return functional.normalize(self.image_out(features), dim=-1), [head(features) for head in self.heads]

    def understand(self, rows: Tensor) -> Tensor:
        """Return unit caption embeddings."""
        states, _ = self.read(self.words(rows))
        mask = (rows != 0).unsqueeze(-1)
        pooled = states.masked_fill(~mask, -1e4).amax(1)
        return functional.normalize(self.text_out(pooled), dim=-1)


def load(work: Path) -> tuple[Judge, Words]:
    """Return the trained judge and its vocabulary."""
    words = Words(json.loads((work / "judge_words.json").read_text()))
    judge = Judge(len(words.words))
    saved = torch.load(work / "judge.pt", map_location="cpu", weights_only=True)
    judge.load_state_dict(saved["state"]["model"])
    return judge.eval(), words


@torch.no_grad()
def answer(judge: Judge, pixels: Tensor) -> Tensor:
    """Return the index of the judge's answer to each question, (pictures, questions)."""
    return torch.stack([logits.argmax(-1) for logits in judge.look(pixels)[1]], 1)


def _loss(judge: Judge, pixels: Tensor, rows: Tensor, right: Tensor) -> Tensor:
    images, answers = judge.look(pixels)
    texts = judge.understand(rows)
    logits = judge.log_scale.exp().clamp(max=60) * images @ texts.T
    target = torch.arange(len(rows), device=rows.device)
    matched = functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
    questions = sum(functional.cross_entropy(made, right[:, i]) for i, made in enumerate(answers))
    return 0.5 * matched + questions


def run(work: Path, minutes: float = 30) -> None:
    """Train for `minutes` in all on the training pictures and their full captions."""
    set_threads()
    pictures, held_out = dataset.load(work, "train"), dataset.load(work, "held_out")
    captions = [r["full_caption"] for r in pictures.records]
    vocabulary = sorted({w.strip(",") for c in captions for w in c.split()})
    (work / "judge_words.json").write_text(json.dumps(vocabulary))
    words = Words(vocabulary)
    rows = words(captions)
    right = torch.tensor([truth(r) for r in pictures.records])
    held_right = torch.tensor([truth(r) for r in held_out.records[:500]])
    torch.manual_seed(SEED)
    judge = Judge(len(vocabulary)).to(device(), memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(judge.parameters(), PEAK_RATE, weight_decay=0.05)
    clock = Clock(work / "judge.pt", minutes)
    if clock.state:
        judge.load_state_dict(clock.state["model"])
        optimizer.load_state_dict(clock.state["optimizer"])
    torch.manual_seed(SEED + clock.step)
    while not clock.over:
        set_rate(optimizer, warm_cosine(clock, PEAK_RATE))
        chosen = torch.randint(len(pictures), (BATCH,)).sort().values
        pixels = shifted(pictures.batch(chosen)).to(device(), memory_format=torch.channels_last)
        loss = _loss(judge, pixels, rows[chosen].to(device()), right[chosen].to(device()))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        if clock.tick(BATCH):
            clock.save({"model": judge.state_dict(), "optimizer": optimizer.state_dict()})
            seen = answer(judge, held_out.batch(range(500)).to(device())).cpu()
            accuracy = (seen == held_right).float().mean(0).tolist()
            clock.log(loss=loss.item(), **dict(zip(classes(), accuracy, strict=True)))
            clock.pause()
