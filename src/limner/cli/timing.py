"""The verb on the speed and size of drawing: measure."""

from __future__ import annotations

from typing import Annotated

import typer

from limner.cli.app import JsonOption, app
from limner.cli.words import paths_and_settings, print_made
from limner.errors import UserError
from limner.terminal import watch_for


@app.command()
def measure(
    run: Annotated[
        list[str], typer.Argument(help="Run folders on one base, and key=value settings.", metavar="RUN...")
    ],
    as_json: JsonOption = False,
) -> None:
    """Measure how fast and how large drawing is: base, adapter attached, adapter merged.

    seconds=60 says how long to measure; inference_steps=[1,4,25] and batches=[1,8] say what. Settings of drawing, such
    as generation.scheduler=euler, are laid over the runs' recipe.
    """
    from limner.measuring import measure

    paths, settings = paths_and_settings(run)
    if not paths:
        raise UserError("measure: no run was given.", "Name a run's folder: limner measure RUN")
    with watch_for(as_json) as watch:
        made = measure(paths, settings=settings, watch=watch)
    print_made(as_json, **({"inference": made[0]} if len(made) == 1 else {str(path.parent): path for path in made}))
