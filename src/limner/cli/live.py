"""`limner generate --live`: a prompt is typed, and the newest picture of it lies in a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from limner.cli.words import print_made, read_seeds, read_settings
from limner.errors import UserError
from limner.keyboard import typed
from limner.terminal import watch_for

if TYPE_CHECKING:
    from limner.adapters.strength import Strength

PLACE = Path("live.png")


class Line:
    """The line at the terminal that is typed into, with how long the last picture took; elsewhere a line a picture."""

    def __init__(self, *, is_terminal: bool, is_silent: bool) -> None:
        self.is_terminal, self.is_silent, self.drawn = is_terminal, is_silent, 0

    def show(self, text: str, beside: str = "") -> None:
        """Show what is typed so far."""
        if self.is_terminal:
            print(f"\r\x1b[K{beside:>7} > {text}", end="", file=sys.stderr, flush=True)

    def tell(self, prompt: str, seconds: float) -> None:
        """Say that a picture is drawn, and how long it took."""
        self.drawn += 1
        self.show(prompt, f"{seconds:.2f} s")
        if not (self.is_terminal or self.is_silent):
            print(f"{seconds:.2f} s  {prompt}", file=sys.stderr, flush=True)


def draw_live(
    source: str, prompts: Sequence[str], adapters: Sequence[tuple[Path, Strength]], seeds: str | None, out: Path | None,
    *, settings: list[str], force_guidance: bool, as_json: bool,
) -> None:  # fmt: skip
    """Draw the prompts that were given, then what is typed, until Ctrl-D or Ctrl-C; print where the picture is."""
    from limner.live import follow, live

    seed, place = _one_seed(seeds), out or PLACE
    if place.is_dir() or place.suffix != ".png":
        raise UserError(f"--out {place}: --live writes one file.", "Name it, such as --out live.png.")
    line = Line(is_terminal=sys.stdin.isatty() and not as_json, is_silent=as_json)
    with watch_for(as_json) as watch:
        with live(source, adapters=adapters, settings=read_settings(settings), force_guidance=force_guidance,
                  watch=watch) as drawn:  # fmt: skip
            if line.is_terminal:
                watch.say(f"type a prompt; {place} is drawn anew while you do. Enter begins another, Ctrl-D ends.")
            line.show("")
            with suppress(KeyboardInterrupt):
                follow(drawn, chain(prompts, typed(sys.stdin, line.show)), place, seed=seed, tell=line.tell)
        if line.is_terminal:
            print(file=sys.stderr)
    if not line.drawn:
        raise UserError("--live: nothing was typed, and nothing was drawn.", "Type a prompt, or give --prompt.")
    if as_json:
        print(json.dumps({"image": str(place), "drawn": line.drawn}))
    else:
        print_made(as_json, image=place)


def _one_seed(seeds: str | None) -> int:
    if seeds is None:
        return 0
    if "," in seeds:
        raise UserError(f"--seeds {seeds}: --live draws one picture at a time.", "Give one seed, such as --seeds 7.")
    return read_seeds(f"{seeds},{seeds}")[0]
