"""Trainings of every method on real pictures, taken in one go or with stops, alone or as one of two processes.

`python -m tests.pipeline.matrix BASE PICTURES OUT` forks two processes that write what all cases end with in both.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.launcher import warm_up
from limner.adapters.adapter import SlotSettings
from limner.adapters.full import Full
from limner.adapters.lora import LoRA
from limner.adapters.peft import Peft
from limner.adapters.pivotal import Pivotal
from limner.adapters.textual_inversion import TextualInversion
from limner.families.family import Family
from limner.families.load import load
from limner.files import default_cache
from limner.objectives import Denoising
from limner.pictures.spec import Pictures, Prior
from limner.prepare.ahead import fetched_ahead
from limner.prepare.check import check_class_pictures, check_pictures
from limner.prepare.encode import Portion, prepare
from limner.prepare.prepared import Prepared
from limner.ranks import Ranks, joined
from limner.train.average import Ema
from limner.train.checkpoint import complete_checkpoints, load_checkpoint, save_checkpoint
from limner.train.loop import Slot, Training
from limner.train.loss_scale import GOOD_STEPS, LossScale
from limner.train.optimizer import AdamW
from limner.types import Batch, Source

STEPS = 4
STOPS = (1, 3, 4)
"""In the first epoch, in the middle of the schedule, and at the last step."""
FEW = ("*.attn2.to_k", "*.attn2.to_v")
SPEC = Pictures(token="<critter>", class_noun="critter", caption_dropout=0.2, shuffle_tags=4, flip=True)


@dataclass(frozen=True)
class Case:
    """What learns, and what else a step may hold."""

    adapter: Any
    ranks: tuple[int | None, ...] = (None,)
    """One for each slot."""
    more: dict[str, Any] = field(default_factory=dict)
    scale: LossScale | None = None


SMALL_LORA = LoRA(rank=2, targets=FEW, text_encoder=True)
CASES = {
    "lora": Case(SMALL_LORA, more={"ema": Ema(decay=0.9)}),
    "full": Case(Full(targets=("*attn*", "*conv_out*", "text_encoder*"), text_encoder=True)),
    "textual_inversion": Case(TextualInversion(vectors=2)),
    "pivotal": Case(Pivotal(lora=SMALL_LORA, words=TextualInversion(vectors=2))),
    "dora": Case(Peft(method="dora", rank=2, targets=FEW, text_encoder=True)),
    "lokr": Case(Peft(method="lokr", rank=2, targets=FEW, text_encoder=True)),
    "stacked": Case(SMALL_LORA, ranks=(2, 1), more={"teacher": True}),
    # as float16 has it: one that overflows first (in float32 its gradient is infinite), one that is about to double
    "scale_too_large": Case(LoRA(rank=2, targets=FEW), scale=LossScale(2.0**129, limit=2.0**129)),
    "scale_grows": Case(LoRA(rank=2, targets=FEW), scale=LossScale(2.0**10, limit=2.0**24, good_steps=GOOD_STEPS - 2)),
}


class Noted:
    """A source that notes which pictures it was asked for."""

    def __init__(self, source: Source) -> None:
        self.source, self.ids = source, list[tuple[str, ...]]()

    def batch(self, step: int, *, seed: int) -> Batch:
        batch = self.source.batch(step, seed=seed)
        self.ids.append(batch.ids)
        return batch


def prepared(family: Family, pictures: Path, portion: Portion | None = None) -> Prepared:
    """Return the examples of a folder with `subject` and `class` in it, two of each a batch, shuffled and mirrored."""
    own = check_pictures(pictures / "subject", SPEC, resolution_px=32)
    prior = check_class_pictures(pictures / "class", SPEC, Prior(enabled=True, weight=0.5), resolution_px=32)
    return prepare(own, family, spec=SPEC, cache=default_cache(), batch=2, prior=prior, portion=portion)


@contextmanager
def training(family: Family, case: Case, source: Source, accumulate: int, ranks: Ranks) -> Iterator[Training]:
    """Yield a training of the case; slots differ in seed, rank, length and learning rate."""
    settings = [SlotSettings(seed=i, rank=rank, words={SPEC.token: "critter"}) for i, rank in enumerate(case.ranks)]
    adapter = case.adapter.attach(family, settings)
    slots = [
        Slot(f"s{i}", source, seed=i, steps=STEPS - i, learning_rate=1e-3 * (i + 1), rates={"text_encoder": 3e-4})
        for i in range(len(settings))
    ]
    optimizer = AdamW(schedule="cosine", warmup_steps=1, max_grad_norm=0.05)
    run = Training(family, adapter, slots, objective=Denoising(noise_offset=0.05), optimizer=optimizer,
                   accumulate=accumulate, **case.more)  # fmt: skip
    if case.scale:
        run.updates[0].scale = LossScale(**asdict(case.scale))
    run.share(ranks)
    try:
        yield run
    finally:
        adapter.detach()


@dataclass(frozen=True)
class Ended:
    """All that a training ended with, and what it told on the way."""

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]
    steps: list[Any]
    """Index and what each slot did: losses, learning rates, norm of the gradient."""
    ids: list[tuple[str, ...]]


def take(
    family: Family,
    name: str,
    data: Prepared,
    *,
    accumulate: int,
    workers: int,
    stops: Sequence[int] = (STEPS,),
    ranks: Ranks | None = None,
    folder: Path,
) -> Ended:
    """Train a case, leaving it at every stop and going on from its checkpoint in a training made anew."""
    ranks = ranks or Ranks()
    steps, ids = [], []
    tensors, numbers = {}, {}
    for stop in stops:
        with (
            fetched_ahead(data, workers) as fetched,
            training(family, CASES[name], source := Noted(fetched), accumulate, ranks) as run,
        ):
            for checkpoint in complete_checkpoints(folder)[-1:]:
                load_checkpoint(run, checkpoint)
            while run.index < stop:
                step = run.step()
                steps.append([step.index, [asdict(slot) for slot in step.slots]])
            if ranks.is_first:
                save_checkpoint(run, folder, keep=1)
            ranks.wait()
            tensors, numbers = run.state()
            tensors = {key: tensor.clone() for key, tensor in tensors.items()}
            ids += source.ids
    return Ended(tensors, numbers, steps, ids)


def main(*words: str) -> None:
    """Import everything, then take every case in two processes."""
    warm_up()
    processes = [get_context("fork").Process(target=take_all, args=(rank, *words)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in processes))


def take_all(rank: int, base: str, pictures: str, out: str) -> None:
    """Take every case in one go and with stops, as one of several processes, and write what each ended with."""
    os.environ["RANK"] = str(rank)
    torch.set_num_threads(1)
    family = load(base, dtype=torch.float32, device="cpu")
    with joined() as ranks:
        prepared(family, Path(pictures), portion=Portion(ranks.index, ranks.count))
        ranks.wait()
        data = prepared(family, Path(pictures))
        for name in CASES:
            for accumulate, how, stops in ((1, "unbroken", (STEPS,)), (2, "unbroken", (STEPS,)), (2, "stopped", STOPS)):
                case = f"{name}-{accumulate}-{how}"
                ended = take(family, name, data, accumulate=accumulate, workers=2, stops=stops, ranks=ranks,
                             folder=Path(out, "checkpoints", case))  # fmt: skip
                write(ended, Path(out) / f"{case}-{ranks.index}")


def write(ended: Ended, path: Path) -> None:
    """Write what a training ended with, tensors and the rest."""
    save_file({name: t.contiguous() for name, t in ended.tensors.items()}, path.with_suffix(".safetensors"))
    told = {"numbers": ended.numbers, "steps": ended.steps, "ids": ended.ids}
    path.with_suffix(".json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
