"""The verbs on pictures and runs: demo, check, plan, train, generate, evaluate, report, compare, caption."""

from __future__ import annotations

import json
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
    as_json: JsonOption = False,
) -> None:
    """Say what a run will need, before it: memory and time of each phase, disk; no GPU and no weights are needed."""
    from limner import many
    from limner import run as runs

    paths, settings = paths_and_settings(pictures or [])
    if bool(paths) == bool(subjects):
        found = f"--subjects {subjects}: takes no pictures." if subjects else "plan: no pictures were given."
        raise UserError(found, "Name a folder of pictures, or a folder of subjects' folders with --subjects.")
    with watch_for(as_json) as watch:
        if subjects:
            told = many.plan_many(subjects, recipe=recipe, settings=settings, watch=watch)
        else:
            told = runs.plan(paths, recipe=recipe, settings=settings, watch=watch)
    print(json.dumps(told.facts) if as_json else "\n".join(told.lines))


@app.command()
def train(
    pictures: Annotated[
        list[str] | None, typer.Argument(help=f"Pictures or folders of them, and {SETTINGS_HELP}")
    ] = None,
    recipe: RecipeOption = "lora",
    run: RunOption = None,
    subjects: SubjectsOption = None,
    class_pictures: Annotated[
        Path | None, typer.Option(help="Folder of class pictures for prior preservation.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue this run instead of starting one.", metavar="RUN")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Teach a base the subject or style of some pictures; leaves an adapter file in the run folder.

    With --subjects each sub-folder's subject gets a run of its own; slots=N of them train at a time, on one base.
    """
    from limner import many
    from limner import run as runs
    from limner.result import results

    paths, settings = paths_and_settings(pictures or [])
    own = {"pictures": paths, "--recipe": recipe != "lora", "--run": run, "--class-pictures": class_pictures,
           "--subjects": subjects}  # fmt: skip
    for name, given in own.items() if resume else ():
        if given:
            raise UserError(f"--resume {resume}: takes no {name}, it goes on with its own.", f"Leave {name} out.")
    for name in ("pictures", "--class-pictures") if subjects else ():
        if own[name]:
            raise UserError(f"--subjects {subjects}: takes no {name}.", f"Leave {name} out, or train one subject.")
    if subjects or (resume and many.is_many(resume)):
        with watch_for(as_json) as watch:
            if subjects:
                made = many.train_many(subjects, recipe=recipe, settings=settings, run=run, watch=watch)
            else:
                made = many.resume_many(resume or "", settings=settings, watch=watch)
        _print_many(made, as_json)
        made.require_all()
        return
    with watch_for(as_json) as watch:
        if resume:
            folder = runs.resume(resume, settings=settings, watch=watch)
        elif paths:
            folder = runs.train(
                paths, recipe=recipe, settings=settings, class_pictures=class_pictures, run=run, watch=watch
            )
        else:
            raise UserError("train: no pictures were given.", "Name a folder: limner train PICTURES")
    print_made(as_json, run=folder.path, adapter=results(folder)[0])


def _print_many(made: Many, as_json: bool) -> None:
    """Print the run of each subject, and last the folder that holds them."""
    from limner.result import results

    files = {one.name: [str(path) for path in results(one.folder)] for one in made.ended if one.folder}
    if as_json:
        rows = [{"name": one.name, "run": str(one.folder.path) if one.folder else None,
                 "files": files.get(one.name, []), "error": str(one.error) if one.error else None}
                for one in made.ended]  # fmt: skip
        print(json.dumps({"runs": str(made.path), "subjects": rows}))
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
