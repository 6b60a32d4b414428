"""The frozen settings class that every member of an axis is."""

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """Settings and behaviour in one frozen object: fields are the settings, methods the behaviour.

    Each field carries a docstring under it; `limner explain` and the reference page show it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
