"""Filters and menders from elsewhere: a person's own, and datatrove's."""

import importlib
import json
import re
from collections.abc import Callable
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from model.base_config import Config
from tasks.engine.code import import_from_here
from tasks.text.judging import Documents, Fault, Faults, Filter, Mender

_USE = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"


class PlugIn(Config):
    """A step of cleaning that is not one of scratchlm's own."""

    use: str = Field(
        pattern=f"^{_USE}$",
        description="Its class, as MODULE:CLASS: a Filter or Mender of tasks.text.judging, or a filter of datatrove; Python "
        "finds the module if it is installed, on PYTHONPATH, or in the folder where the command runs.",
    )
    fields: dict[str, Any] = Field({}, description="Its fields, by name.")
    profiles: tuple[str, ...] = Field(
        (), description="Profiles of the sources that take it; if empty, all but none."
    )

    @property
    def module(self) -> str:
        """The module that it is in."""
        return self.use.partition(":")[0]

    @field_validator("fields")
    @classmethod
    def _in_one_order(cls, fields: dict[str, Any]) -> dict[str, Any]:
        return dict(sorted(fields.items()))

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Make the step, so that what is wrong is said at once, and keep what it fills in of itself.

        Such as the digest of a file that it reads: it is in the recipe, and in the key, from here on.
        """
        if not isinstance(values, dict) or not re.fullmatch(_USE, str(values.get("use"))):
            return values
        fields = values.get("fields") or {}
        made = make_step(values["use"], fields) if isinstance(fields, dict) else None
        if made is None or isinstance(made, DatatroveFilter):
            return values
        return {**values, "fields": made.model_dump(mode="json", include=made.model_fields_set)}

    def make(self) -> Filter | Mender:
        """The step, with its fields.

        Raises:
            ValueError: if there is none, or it does not take these fields.
        """
        return make_step(self.use, self.fields)


def make_step(use: str, fields: dict[str, Any]) -> Filter | Mender:
    """The step that MODULE:CLASS names, with its fields.

    Raises:
        ValueError: if there is none, or it does not take these fields.
    """
    module, _, name = use.partition(":")
    import_from_here()
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise ValueError(
            f"{use} cannot be imported ({type(error).__name__}: {error}): correct its name, or install it"
        ) from error
    from datatrove.pipeline.filters.base_filter import BaseFilter

    try:
        if isinstance(found, type) and issubclass(found, Filter | Mender):
            return found(**fields)
        if isinstance(found, type) and issubclass(found, BaseFilter):
            return DatatroveFilter.of(found, fields)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ValueError(f"{use}: {told}") from error
    except TypeError as error:
        raise ValueError(f"{use}: {error}") from error
    raise ValueError(
        f"{use} is neither a Filter nor a Mender of tasks.text.judging, nor a filter of datatrove"
    )


class DatatroveFilter(Filter):
    """A filter of datatrove, which judges documents one by one."""

    block: Any = Field(description="The filter.")

    @classmethod
    def of(cls, kind: Callable[..., Any], fields: dict[str, Any]) -> "DatatroveFilter":
        """The filter with these fields; where it counts words, they are ours."""
        import inspect

        words: dict[str, Any] = {}
        for name in ("language", "tokenizer_language"):
            if name in inspect.signature(kind).parameters and name not in fields:
                from tasks.text.words import PlainWords

                words[name] = PlainWords()
        return cls(block=kind(**fields, **words))

    def judge(self, documents: Documents) -> Faults:
        """What is wrong with each of the documents."""
        return [None if isinstance(one, str) else one for one in self.each(documents)]

    def each(self, documents: Documents) -> list[str | Fault]:
        """For each of the documents the text that the filter leaves of it, which may be another, or what is wrong with it."""
        from datatrove.data import Document

        found: list[str | Fault] = []
        columns = (documents.column(name) for name in ("id", "metadata"))
        for text, identifier, metadata in zip(documents.texts, *columns, strict=True):
            document = Document(text=text, id=identifier, metadata=json.loads(metadata))
            verdict = self.block.filter(document)
            kept, reason = verdict if isinstance(verdict, tuple) else (verdict, "")
            found.append(
                document.text if kept else Fault(reason or type(self.block).__name__, "", None, None)
            )
        return found
