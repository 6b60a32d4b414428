"""The frozen settings class that every member of an axis is."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from limner.errors import UserError

Own = TypeVar("Own", bound="Spec")


class Spec(BaseModel):
    """Settings and behaviour in one frozen object: fields are the settings, methods the behaviour.

    Each field carries a docstring under it; `limner explain` and the reference page show it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @classmethod
    def of(cls: type[Own], settings: Mapping[str, Any], verb: str) -> Own:
        """Return the settings of a verb that has a few of its own.

        Raises:
            UserError: one does not exist, or has a value that is not allowed.
        """
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            first = error.errors()[0]
        key, names = ".".join(map(str, first["loc"][:1])), ", ".join(cls.model_fields)
        if first["type"] == "extra_forbidden":
            close = difflib.get_close_matches(key, cls.model_fields, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"Its settings are {names}."
            raise UserError(f"{verb}: {key} is not a setting.", hint)
        why = first["msg"].removeprefix("Value error, ")
        if not key:
            raise UserError(f"{verb}: {why}.", f"See: limner {verb} --help")
        raise UserError(f"{verb}: {key} = {first['input']!r} is not allowed ({why[0].lower()}{why[1:]}).",
                        f"See: limner {verb} --help")  # fmt: skip
