"""The verbs on pictures and runs: demo, check, plan, train, generate, evaluate, report, compare, sweep, caption."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli.app import JsonOption, PartialOption, PicturesArgument, RecipeOption, RunOption, app
from limner.cli.live import draw_live
from limner.cli.words import SETTING, file_and_strength, paths_and_settings, print_made, read_seeds, read_settings
from limner.errors import UserError
from limner.terminal import watch_for

if TYPE_CHECKING:
    from limner.many import Many

RUNS_HELP = "A run folder, or several of one subject to compare."
SETTINGS_HELP = "key=value settings laid over the recipe."
ForceOption = Annotated[
    bool, typer.Option("--force-guidance", help="Keep guidance that a few-step adapter blurs with.")
]
SubjectsOption = Annotated[
    Path | None, typer.Option(help="Folder of subjects' folders, each named 'TOKEN CLASS'.", metavar="DIR")
]
VariantsOption = Annotated[
    str | None,
    typer.Option(help="Table of runs (.csv, .toml), or a grid: 'adapter.rank=4,8 seed=0,1'.", metavar="FILE|GRID"),
]


@app.command()
def demo(
    settings: Annotated[list[str] | None, typer.Argument(help=SETTINGS_HELP)] = None,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Do everything once on the embedded base: train, draw, score, report."""
    from limner.demonstration import demo as do_everything

    with watch_for(as_json) as watch:
        page = do_everything(run, settings=read_settings(settings or []), watch=watch)
    print_made(as_json, runs=page.parent, report=page)


@app.command()
def check(
    pictures: PicturesArgument,
    recipe: RecipeOption = "lora",
    as_json: JsonOption = False,
) -> None:
    """Say every problem of pictures, captions and settings at once, before anything is loaded."""
    from limner import run as runs

    paths, settings = paths_and_settings(pictures)
    with watch_for(as_json) as watch:
        runs.check(paths, recipe=recipe, settings=settings, watch=watch)
    print_made(as_json, checked=paths[0])


@app.command()
def plan(
    pictures: Annotated[
        list[str] | None, typer.Argument(help=f"Pictures or folders of them, and {SETTINGS_HELP}")
    ] = None,
    recipe: RecipeOption = "lora",
    subjects: SubjectsOption = None,
    variants: VariantsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a run will need, before it: memory and time of each phase, disk; no GPU and no weights are needed."""
    from limner import many
    from limner import run as runs

    paths, settings = paths_and_settings(pictures or [])
    if not variants and bool(paths) == bool(subjects):
        found = f"--subjects {subjects}: takes no pictures." if subjects else "plan: no pictures were given."
        raise UserError(found, "Name a folder of pictures, or a folder of subjects' folders with --subjects.")
    with watch_for(as_json) as watch:
        if subjects or variants:
            told = many.plan_many(subjects, variants=variants, pictures=paths, recipe=recipe, settings=settings,
                                  watch=watch)  # fmt: skip
        else:
            told = runs.plan(paths, recipe=recipe, settings=settings, watch=watch)
    print(json.dumps(told.facts) if as_json else "\n".join(told.lines))


@app.command()
def train(  # noqa: PLR0913 - the flags of one verb
    pictures: Annotated[
        list[str] | None, typer.Argument(help=f"Pictures or folders of them, and {SETTINGS_HELP}")
    ] = None,
    recipe: RecipeOption = "lora",
    run: RunOption = None,
    subjects: SubjectsOption = None,
    variants: VariantsOption = None,
    class_pictures: Annotated[
        Path | None, typer.Option(help="Folder of class pictures for prior preservation.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue this run instead of starting one.", metavar="RUN")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Teach a base the subject or style of some pictures; leaves an adapter file in the run folder.

    With --subjects each sub-folder's subject gets a run of its own, with --variants each row of a table or grid;
    slots=N of them train at a time, on one base.
    """
    from limner import many
    from limner import run as runs
    from limner.result import results

    paths, settings = paths_and_settings(pictures or [])
    own = {"pictures": paths, "--recipe": recipe != "lora", "--run": run, "--class-pictures": class_pictures,
           "--subjects": subjects, "--variants": variants}  # fmt: skip
    _refuse_together(f"--resume {resume}" if resume else "", own, tuple(own), ", it goes on with its own")
    _refuse_together(f"--subjects {subjects}" if subjects else "", own, ("pictures", "--class-pictures"))
    _refuse_together(f"--variants {variants}" if variants else "", own, ("--class-pictures",))
    with watch_for(as_json) as watch:
        if subjects or variants:
            made = many.train_many(subjects, variants=variants, pictures=paths, recipe=recipe, settings=settings,
                                   run=run, watch=watch)  # fmt: skip
        elif resume and many.is_many(resume):
            made = many.resume_many(resume, settings=settings, watch=watch)
        elif resume:
            made = runs.resume(resume, settings=settings, watch=watch)
        elif paths:
            made = runs.train(
                paths, recipe=recipe, settings=settings, class_pictures=class_pictures, run=run, watch=watch
            )
        else:
            raise UserError("train: no pictures were given.", "Name a folder: limner train PICTURES")
    if isinstance(made, many.Many):
        _print_many(made, as_json)
        made.require_all()
    else:
        print_made(as_json, run=made.path, adapter=results(made)[0])


def _refuse_together(option: str, given: Mapping[str, object], others: Sequence[str], why: str = "") -> None:
    """Refuse words that mean nothing beside an option."""
    for name in others if option else ():
        if given[name]:
            raise UserError(f"{option}: takes no {name}{why}.", f"Leave {name} out.")


def _print_many(made: Many, as_json: bool) -> None:
    """Print each run, and last the folder that holds them."""
    from limner.result import results

    files = {one.name: [str(path) for path in results(one.folder)] for one in made.ended if one.folder}
    if as_json:
        rows = [{"name": one.name, "run": str(one.folder.path) if one.folder else None,
                 "files": files.get(one.name, []), "error": str(one.error) if one.error else None}
                for one in made.ended]  # fmt: skip
        print(json.dumps({"runs": str(made.path), made.kind: rows}))
        return
    for one in made.ended:
        if not one.error:
            print(f"{one.name}: {files[one.name][0]}")
    print(f"runs: {made.path}")


@app.command()
def generate(  # noqa: PLR0913 - the flags of one verb
    source: Annotated[str, typer.Argument(help="A run folder, or a base.", metavar="RUN|BASE")],
    settings: Annotated[list[str] | None, typer.Argument(help=SETTINGS_HELP)] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What to draw; without it, the run's comparison.")] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="A LoRA, peft's folder, a learned word or a run to add, at a strength: 0.8 or 0.8,text=0.5,up.1=0.",
            metavar="FILE[:STRENGTH]",
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="How many pictures per prompt (4), or a list of seeds.", metavar="N|LIST")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures; with --live the one file.")] = None,
    live: Annotated[bool, typer.Option("--live", help="Draw again while a prompt is typed; Ctrl-D ends.")] = False,
    force_guidance: ForceOption = False,
    allow_partial: PartialOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw pictures from a run or a base."""
    from limner import run as runs

    if live:
        own = [file_and_strength(text) for text in adapter or []]
        draw_live(source, prompt or [], own, seeds, out, settings=settings or [],
                  force_guidance=force_guidance, as_json=as_json)  # fmt: skip
        return
    with watch_for(as_json) as watch:
        folder = runs.generate(
            source, prompt or [], adapters=[file_and_strength(text) for text in adapter or []],
            seeds=read_seeds(seeds or "4"), out=out, settings=read_settings(settings or []),
            force_guidance=force_guidance, allow_partial=allow_partial, watch=watch,
        )  # fmt: skip
    print_made(as_json, images=folder)


@app.command()
def distill(
    words: Annotated[
        list[str],
        typer.Argument(
            help=f"A base or a run, captioned pictures or none (the base then draws them), and {SETTINGS_HELP}",
            metavar="BASE|RUN [PICTURES]...",
        ),
    ],
    recipe: RecipeOption = "few-step",
    run: RunOption = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what it will need, and do nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Teach an adapter to draw in 4 steps what a base, or a run's subject on it, draws in many.

    distill.words=["dog"] or distill.prompts=FILE says what the base draws to learn from. A run that was stopped goes on
    with train --resume.
    """
    from limner import distilling

    named = [word for word in words if not SETTING.match(word) or Path(word).exists()]
    if not named:
        raise UserError("distill: no base or run was given.", "Write limner distill BASE|RUN [PICTURES]")
    settings = read_settings([word for word in words if word not in named])
    source, *pictures = named
    with watch_for(as_json) as watch:
        if not plan:
            folder = distilling.distill(source, pictures, recipe=recipe, settings=settings, run=run, watch=watch)
            print_made(as_json, run=folder.path, adapter=folder.adapter)
            return
        told = distilling.plan_distill(source, pictures, recipe=recipe, settings=settings, watch=watch)
    print(json.dumps(told.facts) if as_json else "\n".join(told.lines))


@app.command()
def evaluate(
    run: Annotated[list[Path], typer.Argument(help=RUNS_HELP, metavar="RUN...")], as_json: JsonOption = False
) -> None:
    """Score a run, base against tuned, with intervals; several runs of one subject are scored side by side."""
    from limner import run as runs

    with watch_for(as_json) as watch:
        scores = runs.evaluate(run, watch=watch)
    print_made(as_json, scores=scores)


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
    print_made(as_json, report=page)


@app.command()
def compare(
    pictures: Annotated[list[str] | None, typer.Argument(help=f"Pictures of one subject, and {SETTINGS_HELP}")] = None,
    arms: Annotated[
        str, typer.Option(help="Recipes, each NAME, FILE or NAME\\[key=value,...].", metavar="ARM,ARM,...")
    ] = "base,lora,dreambooth,dreambooth-lora,textual-inversion",
    subjects: SubjectsOption = None,
    seeds: Annotated[str, typer.Option(help="How many training seeds, or a list.", metavar="N|LIST")] = "1",
    run: Annotated[Path | None, typer.Option("--run", help="The folder to make or go on with.", metavar="DIR")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train several methods on one subject or many; say which is better for what, with intervals.

    An arm may have settings of its own: --arms "lora,dreambooth\\[prior.enabled=false]". The others go to all arms;
    budget=steps steps=N, budget=time seconds=N or budget=memory fit=8GB makes them equal. The same command goes on.
    """
    from limner.comparing import compare

    paths, own = paths_and_settings(pictures or [])
    with watch_for(as_json) as watch:
        page = compare(paths, arms=arms, subjects=subjects, seeds=read_seeds(seeds), run=run, settings=own, watch=watch)
    print_made(as_json, study=page.with_suffix(".json"), page=page)


@app.command()
def sweep(
    words: Annotated[
        list[str],
        typer.Argument(
            help=f"Pictures of one subject, settings with values to try, and {SETTINGS_HELP}",
            metavar="PICTURES... key=value,value...",
        ),
    ],
    recipe: RecipeOption = "lora",
    run: Annotated[Path | None, typer.Option("--run", help="The folder to make or go on with.", metavar="DIR")] = None,
    as_json: JsonOption = False,
) -> None:
    """Try settings: every combination trains in one batch, is judged, and the one that the evidence is for is taken.

    limner sweep PICTURES adapter.rank=4,8,16 learning_rate=1e-4,3e-4 steps=400 trains six; slots=N of them at a time.
    The same command goes on.
    """
    from limner import sweeping

    asked = [word for word in words if SETTING.match(word) and not os.path.exists(word)]
    axes, others = sweeping.split_axes(asked)
    paths, settings = paths_and_settings([word for word in words if word not in asked or word in others])
    with watch_for(as_json) as watch:
        made = sweeping.sweep(paths, axes, recipe=recipe, settings=settings, run=run, watch=watch)
    found = {"run": made.run.path, "adapter": made.adapter} if made.run and made.adapter else {}
    if as_json:
        told = {
            name: str(path) for name, path in {"sweep": made.path / "sweep.json", **found, "page": made.page}.items()
        }
        print(json.dumps({**told, "taken": made.sweep.taken, "command": made.sweep.command}))
    else:
        print_made(as_json, **found, page=made.page)


@app.command()
def caption(
    pictures: PicturesArgument,
    model: Annotated[str, typer.Option(help="Image-to-text model: a hub name or a folder.", metavar="NAME|FOLDER")],
    out: Annotated[Path, typer.Option(help="The file of captions to write.")] = Path("captions.jsonl"),
    as_json: JsonOption = False,
) -> None:
    """Write captions with an image-to-text model, for pictures.captions_file."""
    from limner import run as runs

    paths, settings = paths_and_settings(pictures)
    with watch_for(as_json) as watch:
        made = runs.caption(paths, model, out, settings=settings, watch=watch)
    print_made(as_json, captions=made)
