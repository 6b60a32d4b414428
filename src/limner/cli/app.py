"""The program that the verbs belong to, and what several of them take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Teach Stable Diffusion a subject or a style from a handful of pictures, and prove what changed.\n\n"
    "Settings are given as key=value after the verb; `limner explain` lists them all.",
)

RunOption = Annotated[Path | None, typer.Option("--run", help="The run folder to make.", metavar="DIR")]
RecipeOption = Annotated[str, typer.Option("--recipe", help="A shipped recipe or a .toml file.", metavar="NAME|FILE")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON, and no progress.")]
PartialOption = Annotated[
    bool, typer.Option("--allow-partial", help="Take what fits of an adapter's file, and say what was left out.")
]
PicturesArgument = Annotated[
    list[str], typer.Argument(help="Pictures or folders of them, and key=value settings laid over the recipe.")
]
RUNS_HELP = "A run folder, or several of one subject to compare."
SETTINGS_HELP = "key=value settings laid over the recipe."


def _version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        print(f"limner {version('limner')}")
        raise typer.Exit
    return wanted


@app.callback()
def limner(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Hold what stands before a verb."""
