"""One case of every method of peft that fits the small random base."""

from __future__ import annotations

from typing import Any

from limner.adapters.peft import METHODS, Peft

OPTIONS: dict[str, dict[str, Any]] = {
    "c3a": {"block_size": 8},
    "fourierft": {"n_frequency": 20},
    "oft": {"oft_block_size": 4},
    "road": {"group_size": 8},
    "supertuning": {"sparsity": 0.9},
    "waveft": {"n_frequency": 20},
}
SPECS = {
    name: Peft(
        method=name,  # pyright: ignore[reportArgumentType]
        rank=4 if method.rank else None,
        alpha=6.0 if method.alpha else None,
        targets="all" if method.convolutions else "attention",
        text_encoder=True,
        options=OPTIONS.get(name, {}),
    )
    for name, method in METHODS.items()
}
