"""Pivotal tuning: a new word and a LoRA learn together (arXiv:2106.05744, as used for subjects)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from limner.adapters.adapter import Attachable, Attached, Change, SlotSettings, Stackable
from limner.adapters.lora import LoRA, StackedLoRA
from limner.adapters.strength import Strength
from limner.adapters.textual_inversion import LearnedWords, TextualInversion
from limner.spec import Spec


class Pivotal(Spec):
    """Pivotal tuning: the token becomes a word of its own, and a LoRA learns what the word alone cannot say."""

    kind: Literal["pivotal"] = "pivotal"
    lora: LoRA = LoRA()
    """The LoRA's settings."""
    words: TextualInversion = TextualInversion()
    """The new word's settings."""

    def rates(self, learning_rate: float) -> dict[str, float]:
        """Return the learning rate of each group."""
        return self.lora.rates(learning_rate) | self.words.rates(learning_rate)

    def attach(self, base: Attachable, slots: Sequence[SlotSettings]) -> Together:
        """Attach both, with the same slots."""
        return Together(self.lora.attach(base, slots), self.words.attach(base, slots))


class Together(Stackable):
    """A LoRA and learned words that train, switch and leave as one."""

    learns_text = True

    def __init__(self, lora: Attached, words: LearnedWords) -> None:
        self.lora, self.words = lora, words
        self.parts = (lora, words)
        self.slots = lora.slots

    @property
    def _stackable(self) -> tuple[StackedLoRA, LearnedWords]:
        assert isinstance(self.lora, StackedLoRA), f"{type(self.lora).__name__} does not stack"
        return self.lora, self.words

    def attach_again(self) -> None:
        for part in self._stackable:
            part.attach_again()

    def stacked(self, others: Sequence[Together]) -> Together:
        lora, words = self._stackable
        theirs = [other._stackable for other in others]
        return Together(lora.stacked([one for one, _ in theirs]), words.stacked([own for _, own in theirs]))

    def leave(self) -> None:
        for part in self._stackable:
            part.leave()

    def slot_parameters(self, slot: int) -> dict[str, Tensor]:
        return {name: p for part in self.parts for name, p in part.slot_parameters(slot).items()}

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def state_dict(self, slot: int = 0) -> dict[str, Tensor]:
        return {name: t for part in self.parts for name, t in part.state_dict(slot).items()}

    def load_state_dict(self, state: Mapping[str, Tensor], slot: int = 0) -> None:
        words = {name: tensor for name, tensor in state.items() if name.startswith("words.")}
        self.words.load_state_dict(words, slot)
        self.lora.load_state_dict({name: t for name, t in state.items() if name not in words}, slot)

    def changes(self, slot: int = 0) -> dict[str, Change]:
        return {group: change for part in self.parts for group, change in part.changes(slot).items()}

    def route(self, slot_of_block: Sequence[int] | None) -> None:
        for part in self.parts:
            part.route(slot_of_block)

    def set_strength(self, strength: Strength | float) -> None:
        """Scale the LoRA; the words, which have no strength, are there unless it is 0."""
        self.lora.set_strength(strength)
        self.words.enable(strength not in (0, Strength(0.0)))

    def enable(self, enabled: bool) -> None:
        for part in self.parts:
            part.enable(enabled)

    def detach(self) -> None:
        for part in reversed(self.parts):
            part.detach()

    def merge(self, slot: int = 0) -> None:
        for part in self.parts:
            part.merge(slot)

    def unmerge(self) -> None:
        for part in self.parts:
            part.unmerge()
