"""The recipe: the one tree of settings of a run, and the unions that list every member of each axis."""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import re
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import tomli_w
from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo

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
from limner.train.average import Ema
from limner.train.optimizer import Adafactor, AdamW, AdamW8bit, Lion, Prodigy, ScheduleFree
from limner.train.trackers import Tracker

# Every member of each axis; a second member makes the alias a union discriminated by `kind`.
Adapter = Annotated[LoRA | Full | TextualInversion | Pivotal | Peft, Field(discriminator="kind")]
Objective = Denoising
Optimizer = Annotated[AdamW | AdamW8bit | Adafactor | Prodigy | ScheduleFree | Lion, Field(discriminator="kind")]

LENGTHS = {"steps", "epochs", "exposures"}
SHIPPED = importlib.resources.files("limner") / "recipes"


class Checkpoint(Spec):
    """When the state of the run is kept, so that it can be continued."""

    every_steps: int = Field(default=100, ge=0)
    """Steps between checkpoints; 0 keeps only the one at the end or at Ctrl-C."""
    keep: int = Field(default=2, ge=1)
    """How many of the newest checkpoints stay on disk."""
    keep_best: bool = False
    """At each checkpoint, measure the loss on the held-out pictures (`evaluation.pictures`), always with the same noise
    at the same timesteps, and keep the checkpoint where it is lowest too. It changes nothing in the training."""
    use: Literal["last", "best"] = "last"
    """Which weights the result is made of: those of the last step, or those of the best checkpoint (`keep_best`)."""


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
    accumulate: int = Field(default=1, ge=1)
    """Batches per step: their gradients are averaged before the update, as one batch of `batch` x `accumulate` does."""
    gradient_checkpointing: bool = False
    """Compute the UNet's inner values twice instead of keeping them: less memory, a third more time."""
    unload: bool = False
    """While training, give back the memory of the VAE and of text encoders that do not learn; changes no result."""
    fit: bool | str = False
    """Make the run fit: true for the memory that is free on the device, or an amount such as "8GB". What it takes is
    said and written into the run's recipe; see `limner plan`. "off" runs without asking whether it fits."""
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
    deterministic: bool = False
    """Take only kernels that give the same bits every time. On a CPU they all do; on a GPU training gets slower."""
    init_from: str | None = None
    """Begin with the weights of this run, or of this LoRA or embedding file, instead of new ones."""
    tracking: tuple[Tracker, ...] = ()
    """Programs that are told each step and shown the previews: ["tensorboard"] (in the run folder), ["wandb"] ..."""
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
    ema: Ema = Ema()
    """A moving average of what learns, in the place of its last values."""
    generation: Sampling = Sampling()
    """How pictures are drawn: class pictures, previews, both sides of the comparison."""
    checkpoint: Checkpoint = Checkpoint()
    """When the run's state is kept."""
    preview: Preview = Preview()
    """Pictures during training."""
    evaluation: Evaluation = Evaluation()
    """What is drawn for the comparison."""


def members_of(field: FieldInfo) -> dict[str, type[BaseModel]]:
    """Return the members of an axis by their kind; nothing where a field is no union."""
    members = get_args(field.annotation) if field.discriminator else ()
    return {member.model_fields["kind"].default: member for member in members}


UNIONS = {name: members for name, field in Recipe.model_fields.items() if (members := members_of(field))}
"""The axes that have several members, by their section of the recipe: kind -> member."""


def load_recipe(source: str | Path | None, settings: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe of a shipped name or a .toml file, with `settings` ("adapter.rank": 4) laid over it.

    Raises:
        UserError: no such recipe, a setting that does not exist, a value that is not allowed.
    """
    where, tree = (Where("settings"), {}) if source is None else _read(source)
    _build(where, tree)
    return _laid_over(tree, settings or {}, Where("settings") if settings else where)


def changed(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """Return a recipe with `settings` laid over it."""
    return _laid_over(recipe.model_dump(mode="json", exclude_none=True), settings, Where("settings"))


def _laid_over(tree: dict[str, Any], settings: Mapping[str, Any], where: Where) -> Recipe:
    if LENGTHS & settings.keys():  # another length than the recipe's takes its place
        tree = {key: value for key, value in tree.items() if key not in LENGTHS}
    for section, members in UNIONS.items():  # of another member than the recipe's, only what both have is kept
        member = members.get(settings.get(f"{section}.kind", ""))
        if member and section in tree:
            tree[section] = {key: value for key, value in tree[section].items() if key in member.model_fields}
    for key, value in settings.items():
        _set(tree, key, value)
    return _build(where, tree)


class Where(NamedTuple):
    """Where settings come from, for messages."""

    name: str
    text: str = ""
    """What the file holds."""

    def at(self, key: str) -> str:
        """Return the name, and the line of a setting where it is found: "mine.toml:12"."""
        section = ""
        for number, line in enumerate(self.text.splitlines(), start=1):
            word = re.match(r"\s*(\[)?\s*([\w.-]+)\s*[\]=]", line)
            if word and word[1]:
                section = f"{word[2]}."
            if word and (section + word[2] == key or (word[1] and word[2] == key)):
                return f"{self.name}:{number}"
        return self.name


def shipped_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(f.name.removesuffix(".toml") for f in SHIPPED.iterdir() if f.name.endswith(".toml"))


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe; reading it back gives the same one."""
    write_atomically(path, tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True)).encode())


def settings_of(recipe: Recipe) -> dict[str, str | float | int | bool]:
    """Return every setting of a recipe by its full name, lists as text; those that are not set are left out."""

    def walk(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in tree.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value if isinstance(value, str | float | int) else str(value)

    return dict(walk(recipe.model_dump(mode="json", exclude_none=True), ""))


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


class Setting(NamedTuple):
    """One setting of a recipe."""

    name: str
    """In full: "optimizer.beta1"."""
    field: FieldInfo
    kinds: tuple[str, ...] = ()
    """The members of its axis that have it, where not all do."""


@functools.cache
def setting_names() -> tuple[Setting, ...]:
    """Return every setting; where members of an axis have the same one, once."""
    return tuple(_settings_of(Recipe, ""))


def _settings_of(model: type[BaseModel], prefix: str) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        inner, members = field.annotation, members_of(field)
        if members:
            yield from _settings_of_union(members, field, f"{prefix}{name}.")
        elif isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _settings_of(inner, f"{prefix}{name}.")
        else:
            yield Setting(f"{prefix}{name}", field)


def _settings_of_union(members: Mapping[str, type[BaseModel]], field: FieldInfo, prefix: str) -> Iterator[Setting]:
    about = "\n".join(f"{kind}: {(member.__doc__ or '').partition(chr(10))[0]}" for kind, member in members.items())
    kinds: Any = Literal[tuple(members)]  # type: ignore[valid-type]
    yield Setting(f"{prefix}kind", FieldInfo(annotation=kinds, default=field.default.kind, description=about))
    same: dict[str, tuple[Setting, list[str]]] = {}
    for kind, member in members.items():
        for setting in _settings_of(member, prefix):
            same.setdefault(f"{setting.name} {setting.field!r}", (setting, []))[1].append(kind)
    names = [setting.name for setting, _ in same.values()]
    for setting, having in sorted(same.values(), key=lambda found: names.index(found[0].name)):
        if setting.name != f"{prefix}kind":
            yield setting if len(having) == len(members) else setting._replace(kinds=tuple(having))


def outline() -> str:
    """Return every setting with its default and the first sentence of what it is."""
    rows = [
        (f"{name} = {field.get_default()!r}", (field.description or "").partition(". ")[0] + _with(name, kinds))
        for name, field, kinds in setting_names()
    ]
    return "\n".join(f"{left[:60]:<62}{' '.join(right.split())}" for left, right in rows)


def explain(key: str) -> str:
    """Return what a setting (or a section) is, its kind of value and its default."""
    inside = [s for s in setting_names() if s.name == key or s.name.startswith(f"{key}.")]
    if not inside:
        raise UserError(f"{key!r}: is not a setting.", _meant(key))
    return "\n\n".join(
        f"{name} = {field.get_default()!r}   ({_kind(field.annotation)}){_with(name, kinds)}\n    "
        + (field.description or "").replace("\n", "\n    ")
        for name, field, kinds in inside
    )


def _with(name: str, kinds: Sequence[str]) -> str:
    return f"   [{name.partition('.')[0]}.kind = {', '.join(kinds)}]" if kinds else ""


def _kind(annotation: Any) -> str:
    if isinstance(annotation, types.UnionType) or get_origin(annotation) is Literal:
        return " | ".join(
            repr(a) if isinstance(a, str) else getattr(a, "__name__", str(a)) for a in get_args(annotation)
        )
    return str(annotation.__name__)


def _read(source: str | Path) -> tuple[Where, dict[str, Any]]:
    name = str(source)
    shipped = SHIPPED / f"{name}.toml"
    path = Path(name).expanduser()
    if not name.endswith(".toml") and shipped.is_file():
        return Where(name), tomllib.loads(shipped.read_text(encoding="utf-8"))
    if not path.is_file():
        inside = path / "recipe.toml"  # a run's
        close = [str(inside)] if inside.is_file() else difflib.get_close_matches(name, shipped_recipes(), n=1)
        raise UserError(
            f"recipe {name!r}: there is no such recipe or file.",
            f"Did you mean {close[0]}?" if close else f"Use {', '.join(shipped_recipes())}, or a .toml file.",
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
        return Where(path.name, text), tomllib.loads(text)
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} at {error.start}"
        raise UserError(f"{path}: is not UTF-8 ({found}).", "Save it as UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: is not readable TOML ({error}).", "Mend that line.") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).", "Give a file that can.") from error


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    place: Any = tree
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise UserError(f"{key}: {section} is a setting, not a section.", f"See: limner explain {section}")
    place[last] = value


def _build(where: Where, tree: Mapping[str, Any]) -> Recipe:
    tree = dict(tree)
    for section in UNIONS:
        if isinstance(tree.get(section), dict):  # without a kind, the default member is meant
            tree[section] = {"kind": Recipe.model_fields[section].default.kind, **tree[section]}
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        parts = [str(part) for part in first["loc"] if not isinstance(part, int)]  # no place within a list
        if parts[0] in UNIONS:
            raise _union_error(where, parts[0], parts[2:], first, tree) from None
        raise _error(where, ".".join(parts), first["type"], first["msg"], first["input"]) from None


def _error(where: Where, key: str, kind: str, message: str, found: Any) -> UserError:
    if kind == "extra_forbidden":
        return UserError(f"{where.at(key)}: {key} is not a setting.", _meant(key))
    message = message.removeprefix("Value error, ").replace("a valid tuple", 'a list, such as ["a", "b"]')
    return UserError(
        f"{where.at(key)}: {key} = {found!r} is not allowed ({message[0].lower()}{message[1:]}).",
        f"See: limner explain {key.partition('[')[0]}",
    )


def _union_error(where: Where, section: str, inner: Sequence[str], first: Any, tree: Mapping[str, Any]) -> UserError:
    """Say what is wrong within a section whose members have different settings; `inner` is the place in it."""
    key, kinds = ".".join([section, *inner]), ", ".join(UNIONS[section])
    if first["type"] == "union_tag_invalid":
        close = difflib.get_close_matches(str(tree[section]["kind"]), UNIONS[section], n=1)
        found = f"{section}.kind = {tree[section]['kind']!r}"
        return UserError(
            f"{where.at(f'{section}.kind')}: {found} is not allowed (use one of {kinds}).",
            f"Did you mean {close[0]}?" if close else f"See: limner explain {section}.kind",
        )
    if not inner:
        return UserError(
            f"{where.at(section)}: {section} = {first['input']!r} is not allowed (it is a section).",
            f"Did you mean {section}.kind={first['input']}?"
            if first["input"] in UNIONS[section]
            else f"Set its parts, such as {section}.kind, to one of {kinds}.",
        )
    having = [kinds for name, _, kinds in setting_names() if name == key or name.startswith(f"{key}.")]
    if first["type"] == "extra_forbidden" and having:
        others = dict.fromkeys(kind for kinds in having for kind in kinds)
        return UserError(
            f"{where.at(key)}: {key} has no meaning for {section}.kind={tree[section]['kind']}.",
            f"Leave it out, or use {section}.kind={' or '.join(others)}.",
        )
    return _error(where, key, first["type"], first["msg"], first["input"])


def _meant(key: str) -> str:
    close = did_you_mean(key)
    return f"Did you mean {close}?" if close else "See all: limner explain"


def did_you_mean(key: str) -> str | None:
    """Return the setting or section whose name is nearest to a misspelt one, or None where none is near."""
    names = {setting.name for setting in setting_names()}
    names |= {name.rpartition(".")[0] for name in names} - {""}
    by_last = {name.rpartition(".")[2]: name for name in sorted(names, key=lambda n: (-n.count("."), n))}
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.6) or [
        by_last[last] for last in difflib.get_close_matches(key.rpartition(".")[2], by_last, n=1, cutoff=0.6)
    ]
    return close[0] if close else None
