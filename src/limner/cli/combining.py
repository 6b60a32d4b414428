"""The verbs on adapters and models: merge, extract, resize, bleed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli.app import SETTINGS_HELP, JsonOption, PartialOption, app
from limner.cli.words import SETTING, file_and_strength, paths_and_settings, print_made, read_settings
from limner.errors import UserError
from limner.terminal import watch_for

if TYPE_CHECKING:
    from limner.low_rank import Kept

OutOption = Annotated[Path, typer.Option(help="The file or folder to write.", metavar="PATH")]


@app.command()
def merge(
    words: Annotated[
        list[str],
        typer.Argument(
            help="A base and adapters, or adapters alone; and key=value settings.", metavar="[BASE] FILE[:STRENGTH]..."
        ),
    ],
    out: OutOption,
    to: Annotated[str, typer.Option(help="Layout of a merged model: diffusers or single-file.")] = "diffusers",
    allow_partial: PartialOption = False,
    as_json: JsonOption = False,
) -> None:
    """Bake adapters into a base, or make one adapter of several; what was made is verified.

    Into a base: precision=float16|bfloat16|float32, shard=GB. Adapters alone: how=concat|sum|svd|ties|dare, rank=N or
    energy=0.95, density, seed, precision. A strength is 0.8, or 0.8,text=0.5,up.1=0 for parts of the model.
    """
    from limner import combining, merging

    named = [word for word in words if not SETTING.match(word) or Path(word).exists()]
    settings = read_settings([word for word in words if word not in named])
    if not named:
        raise UserError("merge: no file was given.", "Write limner merge BASE FILE:0.8 --out MODEL")
    whole = merging.is_base(file_and_strength(named[0], "")[0])
    adapters = [file_and_strength(word, "") for word in named[1 if whole else 0 :]]
    if len(adapters) < (1 if whole else 2):
        raise UserError(f"merge: nothing to merge {named[0]} with.", "Name a base and an adapter, or several adapters.")
    with watch_for(as_json) as watch:
        if whole:
            made = merging.merge(
                named[0], adapters, out, to=to, settings=settings, allow_partial=allow_partial, watch=watch
            )
            print_made(as_json, model=made)
            return
        if to != "diffusers":
            raise UserError("--to: has no meaning for adapters alone.", "Leave it out; see limner export.")
        made, kept = combining.merge_adapters(
            adapters, out, settings=settings, allow_partial=allow_partial, watch=watch
        )
    _print(made, kept, as_json=as_json)


@app.command()
def extract(
    tuned: Annotated[str, typer.Argument(help="A model: a run, a folder or a single file.", metavar="TUNED")],
    base: Annotated[str, typer.Argument(help="The base that it was made from.", metavar="BASE")],
    settings: Annotated[list[str], typer.Argument(help="rank=N or energy=0.95; precision.", metavar="rank=N")],
    out: OutOption,
    as_json: JsonOption = False,
) -> None:
    """Take a LoRA out of a whole model, and say how much of the change it keeps."""
    from limner import combining

    with watch_for(as_json) as watch:
        made = combining.extract(tuned, base, out, settings=read_settings(settings), watch=watch)
    _print(*made, as_json=as_json)


@app.command()
def resize(
    file: Annotated[Path, typer.Argument(help="A LoRA's file.", metavar="FILE")],
    settings: Annotated[list[str], typer.Argument(help="rank=N or energy=0.95; precision.", metavar="rank=N")],
    out: OutOption,
    as_json: JsonOption = False,
) -> None:
    """Bring a LoRA to a smaller rank, and say how much of the change it keeps."""
    from limner import combining

    with watch_for(as_json) as watch:
        made = combining.resize(file, out, settings=read_settings(settings), watch=watch)
    _print(*made, as_json=as_json)


@app.command()
def bleed(
    words: Annotated[
        list[str],
        typer.Argument(help=f"Runs of different subjects on one base, and {SETTINGS_HELP}", metavar="RUN RUN..."),
    ],
    out: Annotated[Path | None, typer.Option(help="The folder to make.", metavar="DIR")] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw several subjects with all their adapters at once, and measure how far each gets into the others."""
    from limner.together import measure_bleed

    runs, settings = paths_and_settings(words)
    with watch_for(as_json) as watch:
        page = measure_bleed(runs, out=out, settings=settings, watch=watch)
    print_made(as_json, matrix=page.with_suffix(".json"), page=page)


def _print(made: Path, kept: dict[str, Kept], *, as_json: bool) -> None:
    """Print the adapter's path; as JSON also how much of each module's change it keeps, and at which rank."""
    if not as_json:
        print_made(as_json, adapter=made)
        return
    modules = {name: {"rank": one.rank, "kept": round(one.share, 4)} for name, one in kept.items()}
    print(json.dumps({"adapter": str(made), "modules": modules}))
