"""Settings from a file and from words, laid over one another; what is wrong with one is said with its place."""

from __future__ import annotations

import difflib
import importlib.resources
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w
from pydantic import ValidationError

from limner.errors import UserError
from limner.recipe.explaining import meant, setting_names
from limner.recipe.tree import LENGTHS, UNIONS, Recipe
from limner.rundir import write_atomically

SHIPPED = importlib.resources.files("limner") / "recipes"


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


def words_of_settings(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as `key=value` words, which `parse_settings` reads back."""
    words: list[str] = []
    for key, value in settings.items():
        is_plain = isinstance(value, str) and parse_settings([f"{key}={value}"])[key] == value
        words.append(f"{key}={value if is_plain else _toml(value)}")
    return words


def _toml(value: Any) -> str:
    """Return a value as TOML in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else str(value)


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
        return UserError(f"{where.at(key)}: {key} is not a setting.", meant(key))
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
