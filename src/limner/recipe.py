"""The recipe: the one tree of settings of a run, and the unions that list every member of each axis."""

from __future__ import annotations

import difflib
import importlib.resources
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import tomli_w
from pydantic import BaseModel, Field, ValidationError

from limner.adapters.full import Full
from limner.adapters.lora import LoRA
from limner.adapters.peft import Peft
from limner.adapters.pivotal import Pivotal
from limner.adapters.textual_inversion import TextualInversion
from limner.errors import UserError
from limner.generate.draw import Sampling
from limner.generate.prompts import Evaluation
from limner.machine import Precision
from limner.objectives import Denoising
from limner.pictures.spec import Pictures, Prior
from limner.rundir import write_atomically
from limner.spec import Spec
from limner.train.optimizer import AdamW

# Every member of each axis; a second member makes the alias a union discriminated by `kind`.
Adapter = Annotated[LoRA | Full | TextualInversion | Pivotal | Peft, Field(discriminator="kind")]
Objective = Denoising
Optimizer = AdamW

LENGTHS = {"steps", "epochs", "exposures"}
SHIPPED = importlib.resources.files("limner") / "recipes"


class Checkpoint(Spec):
    """When the state of the run is kept, so that it can be continued."""

    every_steps: int = Field(default=100, ge=0)
    """Steps between checkpoints; 0 keeps only the one at the end or at Ctrl-C."""
    keep: int = Field(default=2, ge=1)
    """How many of the newest checkpoints stay on disk."""


class Preview(Spec):
    """Pictures drawn during training, to watch the subject appear."""

    every_steps: int = Field(default=0, ge=0)
    """Steps between previews; 0 draws none."""
    prompt: str = "a photo of {subject}"
    """What to draw; "{subject}" becomes the token and the class noun."""
    images: int = Field(default=4, ge=1)
    """Pictures per preview."""


class Recipe(Spec):
    """Everything that decides a run. What most people set stands at the top, the rest in sections."""

    base: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    """The frozen model: "tiny" (embedded), a hub name, a diffusers folder, or a .safetensors file."""
    steps: int | None = Field(default=None, ge=1)
    """Length of the run in updates of the adapter. Give one of `steps`, `epochs`, `exposures`; the rest follows."""
    epochs: float | None = Field(default=None, gt=0)
    """Length of the run in passes over the subject's pictures, repeats counted."""
    exposures: float | None = Field(default=None, gt=0)
    """Length of the run in times that each picture of the subject is seen, on average."""
    batch: int = Field(default=1, ge=1)
    """Subject pictures per step; with prior preservation as many class pictures come on top."""
    resolution: int = Field(default=0, ge=0)
    """Side of the training pictures in pixels; 0 takes the base's own."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """How far each step goes. 1e-4 for LoRA on SD 1.5; the embedded base likes 2e-3."""
    seed: int = 0
    """Every random draw of the run follows from it."""
    precision: Precision = "auto"
    """Number format of the frozen base; what learns is always float32."""
    device: str = "auto"
    """Where to compute: "auto", "cuda", "cuda:1", "mps", "cpu"."""
    adapter: Adapter = LoRA()
    """Which parameters learn."""
    objective: Objective = Denoising()
    """What is minimised."""
    pictures: Pictures = Pictures()
    """The subject's pictures and their captions."""
    prior: Prior = Prior()
    """Prior preservation: class pictures that keep the class what it was (arXiv:2208.12242)."""
    optimizer: Optimizer = AdamW()
    """How weights follow gradients."""
    generation: Sampling = Sampling()
    """How pictures are drawn: class pictures, previews, both sides of the comparison."""
    checkpoint: Checkpoint = Checkpoint()
    """When the run's state is kept."""
    preview: Preview = Preview()
    """Pictures during training."""
    evaluation: Evaluation = Evaluation()
    """What is drawn for the comparison."""

    def check_words(self) -> None:
        """Refuse a missing class noun where one is needed, and a token in the class pictures' prompt."""
        needs_noun = "{class_noun}" in self.pictures.caption or self.prior.active
        if needs_noun and not self.pictures.class_noun and not self.pictures.subjects:
            raise UserError(
                "pictures.class_noun: is not set, and the captions need to say what the subject is.",
                'Add one word, such as pictures.class_noun=dog, or a caption of your own: pictures.caption="..."',
            )
        if self.prior.active:
            self.prior.caption(self.pictures)


def load_recipe(source: str | Path | None, settings: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe of a shipped name or a .toml file, with `settings` ("adapter.rank": 4) laid over it.

    Raises:
        UserError: no such recipe, a setting that does not exist, a value that is not allowed.
    """
    where, tree = ("settings", {}) if source is None else _read(source)
    _build(where, tree)
    settings = settings or {}
    if LENGTHS & settings.keys():  # another length than the recipe's takes its place
        tree = {key: value for key, value in tree.items() if key not in LENGTHS}
    for key, value in settings.items():
        _set(tree, key, value)
    return _build("settings" if settings else where, tree)


def shipped_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(f.name.removesuffix(".toml") for f in SHIPPED.iterdir() if f.name.endswith(".toml"))


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe; reading it back gives the same one."""
    write_atomically(path, tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True)).encode())


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` words; a value is TOML (`4`, `true`, `[1, 2]`), and what is not TOML is text."""
    settings: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UserError(f"{word!r}: is not a setting.", "Write settings as key=value, such as adapter.rank=8.")
        if key in settings:
            raise UserError(f"{key}: is set twice ({settings[key]!r} and {text!r}).", "Give it once.")
        try:
            settings[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            settings[key] = text
    return settings


def setting_names(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every setting's full name and its pydantic field."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from setting_names(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def outline() -> str:
    """Return every setting with its default and the first sentence of what it is."""
    rows = [
        (f"{name} = {field.get_default()!r}", (field.description or "").partition(". ")[0])
        for name, field in setting_names()
    ]
    return "\n".join(f"{left[:60]:<62}{' '.join(right.split())}" for left, right in rows)


def explain(key: str) -> str:
    """Return what a setting (or a section) is, its kind of value and its default."""
    fields = dict(setting_names())
    inside = {name: field for name, field in fields.items() if name == key or name.startswith(f"{key}.")}
    if not inside:
        raise UserError(f"{key!r}: is not a setting.", _did_you_mean(key, fields))
    return "\n\n".join(
        f"{name} = {field.get_default()!r}   ({_kind(field.annotation)})\n    {field.description}"
        for name, field in inside.items()
    )


def _kind(annotation: Any) -> str:
    if isinstance(annotation, types.UnionType) or get_args(annotation):
        return " | ".join(
            repr(a) if isinstance(a, str) else getattr(a, "__name__", str(a)) for a in get_args(annotation)
        )
    return annotation.__name__


def _read(source: str | Path) -> tuple[str, dict[str, Any]]:
    name = str(source)
    shipped = SHIPPED / f"{name}.toml"
    path = Path(name).expanduser()
    if not name.endswith(".toml") and shipped.is_file():
        return name, tomllib.loads(shipped.read_text(encoding="utf-8"))
    if not path.is_file():
        raise UserError(
            f"recipe {name!r}: there is no such recipe or file.",
            f"Use {', '.join(shipped_recipes())}, or the path of a .toml file.",
        )
    try:
        return path.name, tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not readable TOML ({error}).", "Mend that line.") from error


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    place: Any = tree
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise UserError(f"{key}: {section} is a setting, not a section.", f"See: limner explain {section}")
    place[last] = value


def _build(where: str, tree: dict[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            names = dict(setting_names())
            raise UserError(f"{where}: {key} is not a setting.", _did_you_mean(key, names)) from None
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(
            f"{where}: {key} = {first['input']!r} is not allowed ({message[0].lower()}{message[1:]}).",
            f"See: limner explain {key.partition('[')[0]}",
        ) from None


def _did_you_mean(key: str, names: Mapping[str, Any]) -> str:
    by_last = {name.rpartition(".")[2]: name for name in names}
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.6) or [
        by_last[last] for last in difflib.get_close_matches(key.rpartition(".")[2], by_last, n=1, cutoff=0.6)
    ]
    return f"Did you mean {close[0]}?" if close else "See all: limner explain"
