"""A CLIP text encoder as the UNet is told by it: prompts of any length, window by window, learned words among them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Encoder:
    """One text encoder with its own tokenizer."""

    model: Any
    """A CLIPTextModel, or a CLIPTextModelWithProjection where the UNet is told the pooled text as well."""
    tokenizer: Any
    before_last: bool
    """Whether the UNet sees the states before the last layer (SDXL), or the last ones, normalised (SD 1.x)."""

    @property
    def max_tokens(self) -> int:
        """How many tokens fit into one window, start and end tokens not counted."""
        return self.model.config.max_position_embeddings - 2

    def tokens(self, text: str, placeholders: Mapping[str, range]) -> list[int]:
        """Return a text's token ids, start and end not among them; learned vector k of a placeholder is -(k + 1)."""
        ids: list[int] = []
        for part in split_at(text, placeholders):
            vectors = placeholders.get(part)
            ids += self._plain(part) if vectors is None else [-k - 1 for k in vectors]
        return ids

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids

    def read(
        self, texts: Sequence[Sequence[int]]
    ) -> tuple[Float[Tensor, "batch tokens width"], Float[Tensor, "batch pooled_width"] | None]:
        """Return the hidden states of texts given by their tokens, and the pooled text where the model has one.

        A text past one window is encoded window by window and joined; what is pooled is its first window.
        """
        windows = max(1, *(-(-len(t) // self.max_tokens) for t in texts))
        start, end, pad = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id)
        hidden: list[Tensor] = []
        pooled: Tensor | None = None
        for window in range(windows):
            pieces = [list(t[window * self.max_tokens : (window + 1) * self.max_tokens]) for t in texts]
            ids = [[start, *piece, end] + [pad] * (self.max_tokens - len(piece)) for piece in pieces]
            said = self.model(torch.tensor(ids, device=self.model.device), output_hidden_states=self.before_last)
            hidden.append(said.hidden_states[-2] if self.before_last else said.last_hidden_state)
            pooled = said.get("text_embeds") if pooled is None else pooled
        return torch.cat(hidden, dim=1), pooled


def split_at(text: str, words: Collection[str]) -> list[str]:
    """Split a text at whole words: "a <cat> here" at {"<cat>"} gives ["a ", "<cat>", " here"]."""
    if not words:
        return [text]
    longest_first = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return [part for part in re.split(rf"(?<!\w)({longest_first})(?!\w)", text) if part]
