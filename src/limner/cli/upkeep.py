"""The verbs on this machine and on the settings: cache, doctor, explain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from limner.cli.app import JsonOption, app
from limner.cli.words import print_made

cache_app = typer.Typer(no_args_is_help=True, help="See and empty the cache of moments, text and class pictures.")
app.add_typer(cache_app, name="cache")


@cache_app.command("ls")
def cache_ls(as_json: JsonOption = False) -> None:
    """Say what the cache holds, by kind, and where it lies."""
    from limner.files import default_cache
    from limner.pictures.cache import list_cache

    holdings = list_cache(default_cache())
    if not as_json:
        for one in holdings:
            print(f"{one.kind:<16}{one.files:>8} files{one.bytes / 2**20:>10.1f} MiB")
    print_made(as_json, cache=default_cache())


@cache_app.command("prune")
def cache_prune(
    keep: Annotated[float, typer.Option(help="What may stay, in GiB; 0 empties the cache.", min=0)] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Remove what was not used for longest; a run that needs it makes it again."""
    from limner.files import default_cache
    from limner.pictures.cache import prune_cache

    files, freed = prune_cache(default_cache(), keep_bytes=int(keep * 2**30))
    if not as_json:
        print(f"removed {files} files, {freed / 2**20:.1f} MiB")
    print_made(as_json, cache=default_cache())


@app.command()
def doctor(
    run: Annotated[Path, typer.Option("--run", help="Where runs are to be kept.", metavar="DIR")] = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Say what will work on this machine: real kernels on each device, memory, disk, packages, the hub."""
    from limner import doctor as doctors

    report = doctors.examine(run)
    print(json.dumps(doctors.as_json(report)) if as_json else "\n".join(doctors.lines(report)))


@app.command()
def explain(key: Annotated[str | None, typer.Argument(help="A setting or section; all without it.")] = None) -> None:
    """Say what a setting is, what it may be, and its default."""
    from limner import recipe

    print(recipe.explain(key) if key else recipe.outline())
