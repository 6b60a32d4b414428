"""The verbs on files for and from other programs: export, inspect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from limner.cli.app import JsonOption, PartialOption, app
from limner.cli.words import print_made, read_settings
from limner.terminal import watch_for


@app.command()
def export(
    source: Annotated[
        str, typer.Argument(help="A run folder, a LoRA's or embedding's file, or a base.", metavar="RUN|FILE|BASE")
    ],
    to: Annotated[
        str, typer.Option(help="diffusers, kohya, lycoris, peft, single-file or embedding.", metavar="LAYOUT")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            help="precision=float32, float16 or bfloat16; for peft base=NAME; for a model's folder shard=GB.",
            metavar="[key=value]",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file, or a folder for it.", metavar="PATH")] = None,
    alpha: Annotated[float | None, typer.Option(help="Alpha in the place of what the file says.", min=0)] = None,
    family: Annotated[str | None, typer.Option(help="The family, where a LoRA does not tell it.")] = None,
    allow_partial: PartialOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a run's result, or another program's LoRA, for diffusers, ComfyUI, A1111 and kohya; read back at once."""
    from limner import sharing

    with watch_for(as_json) as watch:
        made = sharing.export(
            source, to=to, out=out, alpha=alpha, family=family, settings=read_settings(settings or []),
            allow_partial=allow_partial, watch=watch,
        )  # fmt: skip
    print_made(as_json, **{path.stem if len(made) > 1 else "file": path for path in made})


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A LoRA, an embedding, a model, or anything else.", metavar="FILE")],
    as_json: JsonOption = False,
) -> None:
    """Say what a file is, what it changes and how much, and which programs load it; in a moment, nothing is run."""
    from limner import inspecting

    found = inspecting.inspect(file)
    print(json.dumps(found.facts) if as_json else "\n".join(found.lines))
