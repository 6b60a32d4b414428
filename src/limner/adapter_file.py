"""An adapter's file of whatever kind, or a run's files: read once, and attached to a base as often as need be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner.adapters.adapter import Attached
from limner.adapters.peft import Peft, attach_peft
from limner.adapters.textual_inversion import attach_words, table_of
from limner.errors import UserError
from limner.export.embedding import Vectors, read_embedding
from limner.export.lora_files import AnyLora, about_of, read_any_lora
from limner.export.peft_adapter import SPEC, layers_of, read_peft
from limner.export.peft_folder import attach_peft_folder, layers_in
from limner.export.peft_reading import PeftPart, is_peft_folder, joined, open_peft_folder
from limner.families.family import Family
from limner.families.foreign import check_lora_family, is_lora, lora_width
from limner.families.weights import read_header
from limner.generate.few_steps import FewSteps, few_steps_of
from limner.rundir import RunDir


@dataclass(frozen=True)
class AdapterFile(ABC):
    """What one file, or the words of one run, adds to a base; its tensors are on the CPU."""

    path: Path
    about: Mapping[str, Any]
    """What the file's header says of it: family, base, token ..."""

    @property
    def tokens(self) -> list[str]:
        """Return the words that it was trained for, where the file says them."""
        token = self.about.get("token")
        return str(token).split(", ") if token else []

    @property
    def few_steps(self) -> FewSteps | None:
        """Return how it is drawn with, where it is a few-step adapter."""
        return few_steps_of(self.about, self.path)

    @abstractmethod
    def attach(self, family: Family) -> list[Attached]:
        """Attach it to a base, or to the model that draws together with it if it was trained on that."""

    def fitting(self, family: Family) -> AdapterFile:
        """Return what of it fits a base: all or, of a LoRA, some of its layers."""
        return self

    def left_out(self) -> list[str]:
        """Return lines about what was left out of the file, none where nothing was."""
        return []

    @property
    def method(self) -> str:
        """Return peft's method that computes layers in the place of the base, so that it depends on their weights."""
        return ""

    @property
    def taken(self) -> set[str]:
        """Return the paths of those layers."""
        return set()


@dataclass(frozen=True)
class LoRAFile(AdapterFile):
    """A LoRA, or changes of weights of another kind, of whatever layout."""

    lora: AnyLora
    width: int
    """Width of the text that it was trained on, 0 where it does not say."""

    def attach(self, family: Family) -> list[Attached]:
        return [self.lora.attach(self._home(family).modules)]

    def fitting(self, family: Family) -> LoRAFile:
        return replace(self, lora=self.lora.fitting(self._home(family).modules))

    def left_out(self) -> list[str]:
        return self.lora.tell_left_out()

    def _home(self, family: Family) -> Family:
        """Return the base that it is for, or the model that draws together with it."""
        partner = family.refiner or family.begun_by
        family = partner if partner and self.width == partner.unet.config.cross_attention_dim else family
        check_lora_family(self.path, self.width, family.unet.config.cross_attention_dim)
        return family


@dataclass(frozen=True)
class PeftFile(AdapterFile):
    """An adapter of one of peft's methods that is no plain LoRA."""

    spec: Peft
    state: Mapping[str, Tensor]

    @property
    def method(self) -> str:
        return self.spec.method

    @property
    def taken(self) -> set[str]:
        return {f"{part}.{path}" for part, paths in layers_of(self.spec, self.state).items() for path in paths}

    def attach(self, family: Family) -> list[Attached]:
        return [attach_peft(_home(family, self.about), self.spec, self.state)]


@dataclass(frozen=True)
class PeftFolder(AdapterFile):
    """peft's own folders of a method that is no plain LoRA, one for each part of the model."""

    parts: Sequence[PeftPart]

    @property
    def method(self) -> str:
        return " and ".join(sorted({part.called for part in self.parts}))

    @property
    def taken(self) -> set[str]:
        return {layer for part in self.parts for layer in layers_in(part)}

    def attach(self, family: Family) -> list[Attached]:
        return [attach_peft_folder(_home(family, self.about), self.parts)]


@dataclass(frozen=True)
class WordsFile(AdapterFile):
    """Learned words, each with its vectors."""

    words: Mapping[str, Vectors]

    @property
    def tokens(self) -> list[str]:
        return list(self.words)

    def attach(self, family: Family) -> list[Attached]:
        attached: list[Attached] = [attach_words(family, self.words)]
        if family.refiner and _reads_alike(family, family.refiner):
            attached.append(attach_words(family.refiner, self.words))
        return attached


def read_adapter(path: Path, *, partial: bool = False) -> list[AdapterFile]:
    """Return what a LoRA's file, an embedding's, one of peft's methods, peft's folder, or a run with its words holds.

    With `partial`, what of a LoRA's file is no part of a LoRA is left out.

    Raises:
        UserError: there is no such file or run, it has no adapter, or its file is damaged.
    """
    if is_peft_folder(path):
        parts = open_peft_folder(path)
        if not all(part.is_plain_lora for part in parts):
            return [PeftFolder(path, about_of(joined(parts).metadata), parts)]
        lora = read_any_lora(path, partial=partial)
        return [LoRAFile(path, lora.about, lora, lora_width(joined(parts)))]
    if path.is_dir():
        return read_run(RunDir.open(path))
    if path.suffix == ".safetensors" and path.exists():
        header = read_header(path)
        if SPEC in header.metadata:
            spec, state, about = read_peft(path)
            return [PeftFile(path, about, spec, state)]
        if is_lora(header):
            lora = read_any_lora(path, partial=partial)
            words = lora.vectors()
            found: list[AdapterFile] = [LoRAFile(path, lora.about, lora, lora_width(header))]
            return [*found, WordsFile(path, {}, words)] if words else found
    token, vectors = read_embedding(path)
    return [WordsFile(path, {"token": token}, {token: vectors})]


def read_run(run: RunDir) -> list[AdapterFile]:
    """Return a run's LoRA, or adapter of another kind, and its learned words.

    Of a few-step run that learned beneath a subject, the subject's come first.

    Raises:
        UserError: it has none: it is not trained yet, or its result is a whole model.
    """
    found = read_adapter(run.adapter) if run.adapter.is_file() else []
    words = dict(read_embedding(file) for file in run.embeddings())
    if words:
        found.append(WordsFile(run.path / "embeddings", {}, words))
    if not found:
        raise UserError(
            f"{run.path}: has no adapter.",
            f"Take one out of its model: limner extract {run.path} BASE --out FILE rank=16"
            if run.model.is_dir()
            else f"Train it first: limner train --resume {run.path}",
        )
    return [*(read_run(RunDir(run.subject)) if run.subject.is_dir() else ()), *found]


def _home(family: Family, about: Mapping[str, Any]) -> Family:
    """Return the base, or the model that draws together with it if that is what a header names."""
    partner = family.refiner or family.begun_by
    return partner if partner and about.get("family") == partner.kind else family


def _reads_alike(family: Family, refiner: Family) -> bool:
    """Tell whether the refiner's text encoder is the base's second one, so that a learned word means the same to it."""
    own, other = (table_of(one.encoders["text_encoder_2"].model).weight for one in (family, refiner))
    return torch.equal(own, other)
