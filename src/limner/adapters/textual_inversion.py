"""New words: learned vectors in the text encoder's table, everything else frozen (arXiv:2208.01618)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from limner.adapters.adapter import (
    Attachable,
    Change,
    SlotSettings,
    Stackable,
    move_into,
    move_out,
    require_fit,
)
from limner.adapters.strength import Strength, as_strength
from limner.errors import UserError
from limner.seeds import generator
from limner.spec import Spec

SPREAD = 0.1
"""Vectors after a word's first begin this far (relative to their length) from it, so that they can part."""


class TextualInversion(Spec):
    """Textual Inversion: the token becomes a word of its own, and only its vectors learn."""

    kind: Literal["textual_inversion"] = "textual_inversion"
    vectors: int = Field(default=4, ge=1, le=32)
    """How many vectors the word has: more hold more, and take as many places of the prompt."""
    initializer: str = ""
    """Words whose meaning the vectors begin with; left out, the class noun."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Learning rate of the vectors; left out, that of the run. 5e-3 is usual on SD 1.5."""

    def rates(self, learning_rate: float) -> dict[str, float]:
        """Return the learning rate of each group."""
        return {"words": self.learning_rate or learning_rate}

    def attach(self, base: Attachable, slots: Sequence[SlotSettings]) -> LearnedWords:
        """Give each slot vectors for its words (the token), beginning at the initializer's meaning.

        Raises:
            UserError: a word is in the base's vocabulary already, or is a part of another word.
        """
        if not all(slot.words for slot in slots):
            raise UserError("pictures.token: is needed to learn a word.", "Write e.g. pictures.token='<subject>'.")
        words = list(dict.fromkeys(word for slot in slots for word in slot.words))
        for word in words:
            if len(base.tokens(word)) == 1:
                raise UserError(
                    f"pictures.token={word!r}: is already a word in the base's vocabulary, and would be overwritten.",
                    "Use one that is not, such as pictures.token='<subject>'.",
                )
        placeholders = {word: range(i * self.vectors, (i + 1) * self.vectors) for i, word in enumerate(words)}
        tables = {root: table_of(module) for root, module in base.modules.items() if root.startswith("text_encoder")}
        stacks = {}
        for root, table in tables.items():
            stack = torch.zeros(len(slots), len(words) * self.vectors, table.embedding_dim, device=table.weight.device)
            for i, slot in enumerate(slots):
                for word, describing in slot.words.items():
                    ids = base.tokens(self.initializer or describing)
                    draws = generator(slot.seed, "words", root, word)
                    first = placeholders[word].start
                    stack[i, first : first + self.vectors] = self._start(table, ids, draws)
            stacks[root] = stack
        owned = [{word: placeholders[word] for word in slot.words} for slot in slots]
        return LearnedWords(base, tables, stacks, placeholders, owned)

    def _start(self, table: nn.Embedding, ids: list[int], draws: torch.Generator) -> Float[Tensor, "vectors width"]:
        """Return the first vectors: those of the initializer where it has as many tokens, else their mean, parted."""
        rows = table.weight[torch.tensor(ids, device=table.weight.device)].detach().float()
        if len(rows) == self.vectors:
            return rows
        mean = rows.mean(dim=0)
        noise = torch.randn(self.vectors, mean.shape[0], generator=draws).to(mean)
        noise[0] = 0
        return mean + SPREAD * mean.norm() * noise / noise.norm(dim=1, keepdim=True).clamp(min=1e-12)


def table_of(module: nn.Module) -> nn.Embedding:
    """Return a text encoder's token table."""
    return next(m for name, m in module.named_modules() if name.endswith("token_embedding") and type(m) is nn.Embedding)


def attach_words(base: Attachable, words: Mapping[str, Mapping[str, Tensor]]) -> LearnedWords:
    """Attach finished vectors: for each word, a tensor [vectors, width] per text encoder; one slot.

    Raises:
        UserError: the vectors are of another width than the base's table.
    """
    placeholders: dict[str, range] = {}
    for word, parts in words.items():
        start = sum(len(r) for r in placeholders.values())
        placeholders[word] = range(start, start + len(next(iter(parts.values()))))
    tables = {root: table_of(m) for root, m in base.modules.items() if root.startswith("text_encoder")}
    stacks = {}
    for root, table in tables.items():
        for word, parts in words.items():
            if root not in parts or parts[root].shape[1] != table.embedding_dim:
                has = " + ".join(str(tensor.shape[1]) for tensor in parts.values())
                wants = " + ".join(str(t.embedding_dim) for t in tables.values())
                raise UserError(f"the embedding {word!r} is {has} wide, the base needs {wants}.", "Use its own base.")
        stacks[root] = torch.cat([parts[root] for parts in words.values()]).float().to(table.weight.device)[None]
    return LearnedWords(base, tables, stacks, placeholders, [placeholders])


def _end(placeholders: Mapping[str, range]) -> int:
    """Return the number after the last of the vectors."""
    return max((where.stop for where in placeholders.values()), default=0)


class LearnedWords(Stackable):
    """Vectors beside the token tables: a token id below zero, -(k + 1), is looked up as vector k of the row's slot.

    Words of several adapters may be there at once: each counts its vectors on from those before it.
    """

    learns_text = True

    def __init__(
        self,
        base: Attachable,
        tables: Mapping[str, nn.Embedding],
        stacks: Mapping[str, Float[Tensor, "slots vectors width"]],
        placeholders: Mapping[str, range],
        owned: Sequence[Mapping[str, range]],
    ) -> None:
        self._first = _end(base.placeholders)
        self._base, self._tables, self._owned = base, tables, list(owned)
        self._placeholders = {
            word: range(self._first + where.start, self._first + where.stop) for word, where in placeholders.items()
        }
        self._stacks = {root: nn.Parameter(stack) for root, stack in stacks.items()}
        self._start = {root: stack.clone() for root, stack in stacks.items()}
        self.slots = len(owned)
        self._slot_of_block: Tensor | None = None
        self._handles: list[Any] = []
        self.attach_again()

    def attach_again(self) -> None:
        self._handles = [h for root, table in self._tables.items() for h in self._hooks(table, self._stacks[root])]
        self._base.placeholders.update(self._placeholders)

    def stacked(self, others: Sequence[LearnedWords]) -> LearnedWords:
        """Return the stack; a word that several have is one word, with vectors of each slot's own."""
        members = (self, *others)
        placeholders: dict[str, range] = {}
        for member in members:
            for word, where in member._owned[0].items():
                known = placeholders.setdefault(word, range(end := _end(placeholders), end + len(where)))
                if len(known) != len(where):
                    raise ValueError(f"{word} has {len(known)} vectors in one slot and {len(where)} in another")
        owned = [{word: placeholders[word] for word in member._owned[0]} for member in members]
        stacks = {root: own.new_zeros(len(members), _end(placeholders), own.shape[2])
                  for root, own in self._stacks.items()}  # fmt: skip
        stack = LearnedWords(self._base, self._tables, stacks, placeholders, owned)
        stack.detach()
        for slot, (member, words) in enumerate(zip(members, owned, strict=True)):
            for root, own in member._stacks.items():
                where = slice(min(r.start for r in words.values()), _end(words))
                move_into(stack._stacks[root], (slice(slot, slot + 1), where), own)
        return stack

    def leave(self) -> None:
        for stack in self._stacks.values():
            move_out(stack)

    def _hooks(self, table: nn.Embedding, stack: nn.Parameter) -> tuple[Any, Any]:
        asked: list[Int[Tensor, "rows tokens"]] = []

        def note(_module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            numbers = -inputs[0] - 1 - self._first
            numbers = torch.where((numbers >= 0) & (numbers < stack.shape[1]), numbers, -1)
            asked[:] = [numbers]
            return (inputs[0].masked_fill(numbers >= 0, 0),)

        def look_up(_module: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> Tensor:
            numbers = asked.pop()
            if not bool((numbers >= 0).any()):
                return output
            rows = torch.arange(len(numbers), device=numbers.device)
            if self._slot_of_block is None:
                slot = rows // (len(numbers) // self.slots) if self.slots > 1 else torch.zeros_like(rows)
            else:
                slot = self._slot_of_block.to(numbers.device)[rows // (len(numbers) // len(self._slot_of_block))]
            learned = stack[slot[:, None], numbers.clamp(min=0)]
            return torch.where((numbers >= 0)[..., None], learned.to(output.dtype), output)

        return table.register_forward_pre_hook(note), table.register_forward_hook(look_up)

    def slot_parameters(self, slot: int) -> dict[str, Tensor]:
        views = {}
        for root, stack in self._stacks.items():
            if stack.grad is None:
                stack.grad = torch.zeros_like(stack)
            for word, where in self._owned[slot].items():
                view = stack.detach()[slot, where.start : where.stop].detach()
                view.grad = stack.grad[slot, where.start : where.stop]
                views[f"words.{root}.{word}"] = view
        return views

    def zero_grad(self) -> None:
        for stack in self._stacks.values():
            if stack.grad is not None:
                stack.grad.zero_()

    def state_dict(self, slot: int = 0) -> dict[str, Tensor]:
        """Return `words.<text encoder>.<word>`, [vectors, width] in float32."""
        return {name: view.clone() for name, view in self.slot_parameters(slot).items()}

    def load_state_dict(self, state: Mapping[str, Tensor], slot: int = 0) -> None:
        views = self.slot_parameters(slot)
        require_fit(views, state)
        for name, view in views.items():
            view.copy_(state[name])

    def changes(self, slot: int = 0) -> dict[str, Change]:
        moved, tensors = 0.0, 0
        for root, stack in self._stacks.items():
            for where in self._owned[slot].values():
                now, then = (s.detach()[slot, where.start : where.stop] for s in (stack, self._start[root]))
                moved, tensors = moved + float((now - then).norm()) ** 2, tensors + 1
        parameters = sum(view.numel() for view in self.slot_parameters(slot).values())
        return {"words": Change(tensors, parameters, moved**0.5)}

    def route(self, slot_of_block: Sequence[int] | None) -> None:
        self._slot_of_block = None if slot_of_block is None else torch.tensor(slot_of_block)

    def set_strength(self, strength: Strength | float) -> None:
        """Scale nothing: a word is there or not.

        Raises:
            UserError: the strength is neither 0 nor 1.
        """
        if as_strength(strength) not in (Strength(0.0), Strength(1.0)):
            raise UserError(f"strength {strength}: a learned word has no strength.", "Use 1, or 0 to switch it off.")
        self.enable(as_strength(strength) == Strength(1.0))

    def enable(self, enabled: bool) -> None:
        if enabled:
            self._base.placeholders.update(self._placeholders)
        else:
            for word in self._placeholders:
                self._base.placeholders.pop(word, None)

    def detach(self) -> None:
        self.enable(False)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def merge(self, slot: int = 0) -> None:
        """Fold nothing: the base's own table stays as it is."""

    def unmerge(self) -> None:
        """Do nothing, as `merge`."""
