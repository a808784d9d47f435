"""The base of every configuration. Alone in its module: every stage's code imports it."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A section of a recipe: immutable, and closed to fields that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
