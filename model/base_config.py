"""The base of every configuration. Alone in its module: every stage's code imports it."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A section of a recipe: immutable, and closed to fields that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules that the section names, by which a result depends on their code, too."""
        return ()
