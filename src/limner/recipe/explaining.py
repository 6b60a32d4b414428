"""What settings there are, what each means, and which one a misspelt word was meant to be."""

from __future__ import annotations

import difflib
import functools
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from limner.errors import UserError
from limner.recipe.tree import Recipe, members_of


def settings_of(recipe: Recipe) -> dict[str, str | float | int | bool]:
    """Return every setting of a recipe by its full name, lists as text; those that are not set are left out."""

    def walk(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in tree.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value if isinstance(value, str | float | int) else str(value)

    return dict(walk(recipe.model_dump(mode="json", exclude_none=True), ""))


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
        raise UserError(f"{key!r}: is not a setting.", meant(key))
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


def did_you_mean(key: str) -> str | None:
    """Return the setting or section whose name is nearest to a misspelt one, or None where none is near."""
    names = {setting.name for setting in setting_names()}
    names |= {name.rpartition(".")[0] for name in names} - {""}
    by_last = {name.rpartition(".")[2]: name for name in sorted(names, key=lambda n: (-n.count("."), n))}
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.6) or [
        by_last[last] for last in difflib.get_close_matches(key.rpartition(".")[2], by_last, n=1, cutoff=0.6)
    ]
    return close[0] if close else None


def meant(key: str) -> str:
    """Return the way on from a key that is no setting."""
    close = did_you_mean(key)
    return f"Did you mean {close}?" if close else "See all: limner explain"
