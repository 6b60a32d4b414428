"""The verbs: parse, call run, print. No logic."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from limner.errors import UserError
from limner.interrupt import EXIT_CODE, leave_at_the_next, stoppable
from limner.ranks import first_to_say, started
from limner.terminal import watch_for

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Teach Stable Diffusion a subject or a style from a handful of pictures, and prove what changed.\n\n"
    "Settings are given as key=value after the verb; `limner explain` lists them all.",
)

STOPPED = "Stopped. What is finished stays; a run goes on with: limner train --resume RUN"
SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*=")
RunOption = Annotated[Path | None, typer.Option("--run", help="The run folder to make.", metavar="DIR")]
RecipeOption = Annotated[str, typer.Option("--recipe", help="A shipped recipe or a .toml file.", metavar="NAME|FILE")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON, and no progress.")]
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


@app.command()
def demo(
    settings: Annotated[list[str] | None, typer.Argument(help=SETTINGS_HELP)] = None,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Do everything once on the embedded base: train, draw, score, report."""
    from limner import run as runs

    with watch_for(as_json) as watch:
        page = runs.demo(run, settings=_settings(settings or []), watch=watch)
    _done(as_json, runs=page.parent, report=page)


@app.command()
def check(
    pictures: PicturesArgument,
    recipe: RecipeOption = "lora",
    as_json: JsonOption = False,
) -> None:
    """Say every problem of pictures, captions and settings at once, before anything is loaded."""
    from limner import run as runs

    paths, settings = _paths_and_settings(pictures)
    with watch_for(as_json) as watch:
        runs.check(paths, recipe=recipe, settings=settings, watch=watch)
    _done(as_json, checked=paths[0])


@app.command()
def plan(
    pictures: PicturesArgument,
    recipe: RecipeOption = "lora",
    as_json: JsonOption = False,
) -> None:
    """Say what a run will need, before it: memory and time of each phase, disk; no GPU and no weights are needed."""
    from limner import run as runs

    paths, settings = _paths_and_settings(pictures)
    with watch_for(as_json) as watch:
        told = runs.plan(paths, recipe=recipe, settings=settings, watch=watch)
    print(json.dumps(told.facts) if as_json else "\n".join(told.lines))


@app.command()
def train(
    pictures: Annotated[
        list[str] | None, typer.Argument(help=f"Pictures or folders of them, and {SETTINGS_HELP}")
    ] = None,
    recipe: RecipeOption = "lora",
    run: RunOption = None,
    class_pictures: Annotated[
        Path | None, typer.Option(help="Folder of class pictures for prior preservation.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue this run instead of starting one.", metavar="RUN")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Teach a base the subject or style of some pictures; leaves an adapter file in the run folder."""
    from limner import run as runs
    from limner.result import results

    paths, settings = _paths_and_settings(pictures or [])
    own = {"pictures": paths, "--recipe": recipe != "lora", "--run": run, "--class-pictures": class_pictures}
    for name, given in own.items() if resume else ():
        if given:
            raise UserError(f"--resume {resume}: takes no {name}, it goes on with its own.", f"Leave {name} out.")
    with watch_for(as_json) as watch:
        if resume:
            folder = runs.resume(resume, settings=settings, watch=watch)
        elif paths:
            folder = runs.train(
                paths, recipe=recipe, settings=settings, class_pictures=class_pictures, run=run, watch=watch
            )
        else:
            raise UserError("train: no pictures were given.", "Name a folder: limner train PICTURES")
    _done(as_json, run=folder.path, adapter=results(folder)[0])


@app.command()
def generate(
    source: Annotated[str, typer.Argument(help="A run folder, or a base.", metavar="RUN|BASE")],
    settings: Annotated[list[str] | None, typer.Argument(help=SETTINGS_HELP)] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What to draw; without it, the run's comparison.")] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="A LoRA file to add.", metavar="FILE[:STRENGTH]")] = None,
    seeds: Annotated[
        str, typer.Option(help="How many pictures per prompt, or a list of seeds.", metavar="N|LIST")
    ] = "4",
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw pictures from a run or a base."""
    from limner import run as runs

    with watch_for(as_json) as watch:
        folder = runs.generate(
            source, prompt or [], adapters=[_adapter(text) for text in adapter or []], seeds=_seeds(seeds), out=out,
            settings=_settings(settings or []), watch=watch,
        )  # fmt: skip
    _done(as_json, images=folder)


@app.command()
def evaluate(
    run: Annotated[list[Path], typer.Argument(help=RUNS_HELP, metavar="RUN...")], as_json: JsonOption = False
) -> None:
    """Score a run, base against tuned, with intervals; several runs of one subject are scored side by side."""
    from limner import run as runs

    with watch_for(as_json) as watch:
        scores = runs.evaluate(run, watch=watch)
    _done(as_json, scores=scores)


@app.command()
def report(
    run: Annotated[list[Path], typer.Argument(help=RUNS_HELP, metavar="RUN...")],
    out: Annotated[Path | None, typer.Option(help="The page to write.", metavar="FILE")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write one file with pictures, curves, scores and costs of a run, or of several side by side."""
    from limner import run as runs

    with watch_for(as_json) as watch:
        page = runs.report(run, out=out, watch=watch)
    _done(as_json, report=page)


@app.command()
def compare(
    pictures: Annotated[list[str] | None, typer.Argument(help=f"Pictures of one subject, and {SETTINGS_HELP}")] = None,
    arms: Annotated[
        str, typer.Option(help="Recipes, each NAME, FILE or NAME\\[key=value,...].", metavar="ARM,ARM,...")
    ] = "base,lora,dreambooth,dreambooth-lora,textual-inversion",
    subjects: Annotated[
        Path | None, typer.Option(help="Folder of subjects' folders, each named 'TOKEN CLASS'.", metavar="DIR")
    ] = None,
    seeds: Annotated[str, typer.Option(help="How many training seeds, or a list.", metavar="N|LIST")] = "1",
    run: Annotated[Path | None, typer.Option("--run", help="The folder to make or go on with.", metavar="DIR")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train several methods on one subject or many; say which is better for what, with intervals.

    An arm may have settings of its own: --arms "lora,dreambooth\\[prior.enabled=false]". The others go to all arms;
    budget=steps steps=N, budget=time seconds=N or budget=memory fit=8GB makes them equal. The same command goes on.
    """
    from limner.comparing import compare

    paths, own = _paths_and_settings(pictures or [])
    with watch_for(as_json) as watch:
        page = compare(paths, arms=arms, subjects=subjects, seeds=_seeds(seeds), run=run, settings=own, watch=watch)
    _done(as_json, study=page.with_suffix(".json"), page=page)


@app.command()
def caption(
    pictures: PicturesArgument,
    model: Annotated[str, typer.Option(help="Image-to-text model: a hub name or a folder.", metavar="NAME|FOLDER")],
    out: Annotated[Path, typer.Option(help="The file of captions to write.")] = Path("captions.jsonl"),
    as_json: JsonOption = False,
) -> None:
    """Write captions with an image-to-text model, for pictures.captions_file."""
    from limner import run as runs

    paths, settings = _paths_and_settings(pictures)
    with watch_for(as_json) as watch:
        made = runs.caption(paths, model, out, settings=settings, watch=watch)
    _done(as_json, captions=made)


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
    _done(as_json, cache=default_cache())


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
    _done(as_json, cache=default_cache())


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


def main() -> None:
    """Run the command line; exit 0 done, 2 the user can mend it, 3 a guard stopped it, 130 the user did, 1 a bug."""
    code = 0
    try:
        if started().count > 1 and sys.argv[1:2] != ["train"]:
            raise UserError(
                f"limner {' '.join(sys.argv[1:2])}: runs in one process.", "Only train is shared by several."
            )
        with stoppable():
            code = app(standalone_mode=False) or 0
        if code == EXIT_CODE:  # typer returns a Ctrl-C as an exit code
            _tell(STOPPED)
    except UserError as error:
        _tell(str(error))
        code = error.exit_code
    except typer.TyperException as error:  # words that typer cannot parse
        print(f"limner: {_unparsed(error)} See: limner --help", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        _tell(STOPPED)
        code = EXIT_CODE
    except BrokenPipeError:  # `head` and `less` have seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        code = _tell_failure(error)
    if code == EXIT_CODE:
        leave_at_the_next()
    sys.exit(code)


def _tell(text: str) -> None:
    """Print why all processes stop, in one of them."""
    if first_to_say(text):
        print(text, file=sys.stderr, flush=True)


def _unparsed(error: typer.TyperException) -> str:
    """Return what typer says, and the setting where a flag was tried in its place."""
    said = error.format_message().rstrip(".")
    flag = re.match(r"No such option: --([\w-]+)", said)
    if flag:
        from limner.recipe import did_you_mean

        close = did_you_mean(flag[1].replace("-", "_"))
        said += f". Settings are key=value{f': did you mean {close}=...?' if close else ''}"
    return f"{said}{'' if said.endswith('?') else '.'}"


def _tell_failure(error: Exception) -> int:
    """Say that memory was too small, or that it is a bug and where its traceback is; return the exit code."""
    # torch, which is not imported here, has an error of its own for a GPU, and only words for the machine
    full = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if full or "can't allocate memory" in str(error):
        found = str(error).partition(". ")[0] or "the machine's memory is full"
        print(f"Out of memory: {found}. Set gradient_checkpointing=true, a lower batch (with accumulate), a lower "
              "resolution, or for pictures a lower generation.batch.", file=sys.stderr)  # fmt: skip
        return 2
    import tempfile
    import traceback

    what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    with tempfile.NamedTemporaryFile("w", prefix="limner-", suffix=".log", delete=False, encoding="utf-8") as file:
        file.write(f"limner {' '.join(sys.argv[1:])}\n\n{''.join(traceback.format_exception(error))}")
    print(f"This is a bug in Limner: {what}. Please report it with {file.name}, which says where.", file=sys.stderr)
    return 1


def _paths_and_settings(words: list[str]) -> tuple[list[Path], dict[str, Any]]:
    """Sort arguments into paths and key=value settings; a path that exists is a path whatever its name."""
    from limner.recipe import setting_names

    paths = [w for w in words if not SETTING.match(w) or os.path.exists(w)]  # a very long value is no error to it
    known = {setting.name for setting in setting_names()}
    for word in paths:
        if word in known and not os.path.exists(word):
            raise UserError(f"{word}: is a setting without its value.", f"Write {word}=...")
    return [Path(p) for p in paths], _settings([w for w in words if w not in paths])


def _settings(words: list[str]) -> dict[str, Any]:
    from limner.recipe import parse_settings

    return parse_settings(words)


def _adapter(text: str) -> tuple[Path, float]:
    path, colon, strength = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    return Path(path), _number(strength, f"--adapter {text}", float)


def _seeds(text: str) -> list[int]:
    numbers = [_number(part, f"--seeds {text}", int) for part in text.split(",")]
    if "," not in text and numbers[0] < 1:
        raise UserError(f"--seeds {text}: draws nothing.", "Give how many, or a list such as 7,8.")
    return numbers if "," in text else list(range(numbers[0]))


def _number(text: str, where: str, kind: Callable[[str], Any]) -> Any:
    try:
        number = kind(text)
        if math.isfinite(number):
            return number
    except ValueError:
        pass
    raise UserError(f"{where}: {text!r} is not a number.", "See: limner generate --help")


def _done(as_json: bool, **made: Path) -> None:
    """Print the paths of what was made: the last line is the one to open. One of several processes does it."""
    if not started().is_first:
        return
    if as_json:
        print(json.dumps({name: str(path) for name, path in made.items()}))
        return
    for name, path in made.items():
        print(f"{name}: {path}" if len(made) > 1 else path)
