"""Recipe: the typed configuration of a run, one section a stage."""

import difflib
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from model.base_config import Config
from model.config import ModelConfig, TrainConfig
from tasks.clean import CleanConfig
from tasks.decontaminate import DecontaminateConfig
from tasks.documents.signatures import MinhashConfig
from tasks.errors import InputError
from tasks.evaluate_answers import EvaluateAnswersConfig
from tasks.evaluate_model import EvaluateModelConfig
from tasks.export_model import ExportModelConfig
from tasks.finetune_model import FinetuneConfig
from tasks.index_benchmarks import NGramsConfig
from tasks.ingest import IngestConfig, Source
from tasks.machine import Machine
from tasks.read_conversations import ReadConversationsConfig
from tasks.secrets import secret_values
from tasks.split import SplitConfig
from tasks.tokenize import TokenizeConfig
from tasks.train_model import TrainModelConfig, check_machine
from tasks.train_tokenizer import TrainTokenizerConfig


class DeduplicateSection(Config):
    """Nothing to choose: the signatures say what is near, and split what always stays."""


class RetrainConfig(Config):
    """When a scheduled retraining trains, from what, and what makes a challenger the champion."""

    min_new_documents: int = Field(20, ge=1, description="New documents that are enough to train again.")
    min_new_bytes: int = Field(1_000_000, ge=1, description="New text that is enough to train again, in bytes.")
    max_age_days: float | None = Field(
        None, gt=0, description="Age of the champion from which a single new document is enough, in days; never if empty."
    )
    tokenizer: Literal["keep", "new"] = Field(
        "keep", description="keep: the champion's, so that only new shards are tokenized; new: trained on the text of now."
    )
    start: Literal["scratch", "champion"] = Field(
        "scratch", description="scratch: random weights, all text; champion: its weights, new text with old text replayed."
    )
    replay_weight: float = Field(
        0.5, ge=0, lt=1, description="Share of the training windows that come from old text; used by start champion only."
    )
    margin_bits_per_byte: float = Field(
        0.002,
        ge=0,
        description="The 95% interval of the difference in held-out bits per byte, old and new text in equal weight, must "
        "lie below minus this, in bits per byte.",
    )
    approval: bool = Field(False, description="Ask a person in the Prefect UI before a better challenger is promoted.")
    approval_hours: float = Field(72.0, gt=0, description="Time to wait for that person, in hours; then it is declined.")


class Recipe(Config):
    """What becomes of which text: one section for each stage, and the machine apart."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9_.-]+$", description="Name of the recipe; runs of one name are compared.")
    ingest: IngestConfig = Field(description="Where the text comes from.")
    clean: CleanConfig = Field(CleanConfig(), description="What is mended and what is dropped.")
    minhash: MinhashConfig = Field(MinhashConfig(), description="Signatures for finding near-duplicates.")
    deduplicate: DeduplicateSection = Field(DeduplicateSection(), description="Near-duplicates.")
    index_benchmarks: NGramsConfig = Field(NGramsConfig(), description="N-grams of benchmark items.")
    decontaminate: DecontaminateConfig = Field(DecontaminateConfig(), description="Text that contains benchmark items.")
    split: SplitConfig = Field(SplitConfig(), description="What is held out.")
    train_tokenizer: TrainTokenizerConfig = Field(TrainTokenizerConfig(), description="The tokenizer.")
    tokenize: TokenizeConfig = Field(TokenizeConfig(), description="Token shards.")
    model: ModelConfig = Field(ModelConfig(), description="Shape of the Transformer.")
    train_model: TrainConfig = Field(TrainConfig(), description="How it is trained.")
    export_model: ExportModelConfig = Field(ExportModelConfig(), description="The Hugging Face folder.")
    evaluate_model: EvaluateModelConfig = Field(EvaluateModelConfig(), description="Benchmarks.")
    retrain: RetrainConfig = Field(RetrainConfig(), description="Scheduled retraining; used by retrain only.")
    machine: Machine = Field(Machine(), description="Where and how fast; changes no result and enters no key.")

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        check_machine(TrainModelConfig(model=self.model, train=self.train_model), self.machine)
        names = [source.name for source in self.ingest.sources]
        if self.split.validation_source is not None:
            if self.split.validation_source not in names:
                near = difflib.get_close_matches(self.split.validation_source, names, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"sources are {', '.join(names)}"
                raise ValueError(f"split.validation_source {self.split.validation_source!r} is no source of ingest: {hint}")
            if len(names) == 1:
                raise ValueError("split.validation_source holds out the only source: add another to train on")
        for identifier in self.split.validation_ids:
            if identifier.split("/")[0] not in names:
                raise ValueError(
                    f"split.validation_ids: {identifier!r} begins with no source of ingest ({', '.join(names)}); "
                    "an id is SOURCE/FILE or SOURCE/NAME"
                )
        return self

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where the text comes from."""
        return self.ingest.sources


class TokenizeConversationsSection(Config):
    """What becomes of conversations that are too long."""

    max_too_long: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Largest share of conversations longer than the context; they are dropped. Above it the run stops.",
    )


class FinetuneRecipe(Config):
    """What a base model becomes by which conversations: one section for each stage, and the machine apart."""

    name: str = Field(
        "finetune", pattern=r"^[A-Za-z0-9_.-]+$", description="Name of the recipe; runs of one name are compared."
    )
    base: str = Field(
        min_length=1,
        description="A run (latest, or the beginning or end of its name), or a Hugging Face folder with safetensors.",
    )
    context_length: int | None = Field(
        None, ge=8, description="Length of a training window, in tokens; that of the base, at most 4,096, if empty."
    )
    read_conversations: ReadConversationsConfig | None = Field(
        None, description="Where the conversations or preferences come from; either this or ingest."
    )
    ingest: IngestConfig | None = Field(
        None,
        description="Where the text of a domain comes from, for continued pre-training; either this or read_conversations.",
    )
    clean: CleanConfig = Field(CleanConfig(), description="What of the text is mended and what is dropped.")
    minhash: MinhashConfig = Field(MinhashConfig(), description="Signatures for finding near-duplicates in the text.")
    index_benchmarks: NGramsConfig = Field(NGramsConfig(), description="N-grams of benchmark items.")
    decontaminate: DecontaminateConfig = Field(DecontaminateConfig(), description="Conversations that contain benchmark items.")
    split: SplitConfig = Field(SplitConfig(), description="Which conversations are held out.")
    tokenize_conversations: TokenizeConversationsSection = Field(
        TokenizeConversationsSection(), description="Conversations that are too long."
    )
    finetune: FinetuneConfig = Field(FinetuneConfig(), description="How the base is trained further.")
    export_model: ExportModelConfig = Field(ExportModelConfig(), description="The Hugging Face folder.")
    evaluate_answers: EvaluateAnswersConfig = Field(EvaluateAnswersConfig(), description="Answers to held-out conversations.")
    evaluate_model: EvaluateModelConfig = Field(EvaluateModelConfig(), description="Benchmarks, of base and tuned model.")
    machine: Machine = Field(Machine(), description="Where and how fast; changes no result and enters no key.")

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        if (self.read_conversations is None) == (self.ingest is None):
            raise ValueError("give either read_conversations (answers to learn) or ingest (text of a domain)")
        names = [source.name for source in self.sources]
        wanted = self.split.validation_source
        if wanted is not None and wanted not in names:
            raise ValueError(
                f"split.validation_source {wanted!r} is no source of read_conversations: sources are {', '.join(names)}"
            )
        if wanted is not None and len(names) == 1:
            raise ValueError("split.validation_source holds out the only source: add another to train on")
        return self

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where the conversations or the text come from."""
        given = self.read_conversations or self.ingest
        assert given is not None
        return given.sources


AnyRecipe = Recipe | FinetuneRecipe


def _section(kind: Any) -> type[BaseModel] | None:
    options = [kind, *get_args(kind)]
    options += [part for option in options for part in get_args(option)]
    return next((option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), None)


def _fields_at(location: tuple[int | str, ...], kind: type[BaseModel]) -> list[str]:
    """Names of the fields of the section that a location in a recipe lies in."""
    section: type[BaseModel] | None = kind
    for part in location[:-1]:
        if section is None:
            return []
        if isinstance(part, str) and part in section.model_fields:
            section = _section(section.model_fields[part].annotation)
    return list(section.model_fields) if section else []


def _sentence(error: Any, origin: str, model: type[BaseModel]) -> str:
    location, kind = tuple(error["loc"]), error["type"]
    field = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        fields = _fields_at(location, model)
        near, known = difflib.get_close_matches(str(location[-1]), fields, 1), ", ".join(fields) or "none"
        return f"{origin}: unknown field {field}: " + (f"did you mean {near[0]!r}?" if near else f"known here are {known}")
    if kind == "missing":
        return f"{origin}: the field {field} is missing: add it"
    message = error["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list, such as [a, b]")
    message = message.replace("Tuple", "The list").replace(" after validation, not 0", "")
    if kind == "value_error":
        return f"{origin}: {field + ': ' if field else ''}{message}"
    return f"{origin}: {field} is {error['input']!r}: {message[0].lower()}{message[1:]}"


def explain(error: ValidationError, origin: str, machine: str | None = None, kind: type[BaseModel] | None = None) -> str:
    """The faults of a recipe as sentences with field, value and mend; those that follow from another one are left out.

    Args:
        origin: where the values come from.
        machine: where those of the section machine come from, if that is another place.
        kind: the model that was to be made, if it is not a recipe.
    """
    model = kind or Recipe
    faults = error.errors()
    misspelt = {
        (*fault["loc"][:-1], name)
        for fault in faults
        if fault["type"] == "extra_forbidden"
        for name in difflib.get_close_matches(str(fault["loc"][-1]), _fields_at(fault["loc"], model), 1)
    }
    places = [fault["loc"] for fault in faults]
    roots = [
        fault
        for fault in faults
        if not (fault["type"] == "missing" and fault["loc"] in misspelt)
        and not any(place != fault["loc"] and place[: len(fault["loc"])] == fault["loc"] for place in places)
    ]
    origins = [machine if machine and fault["loc"][:1] == ("machine",) else origin for fault in roots]
    return "\n".join(_sentence(fault, place, model) for fault, place in zip(roots, origins, strict=True))


def check_no_secrets(recipe: AnyRecipe) -> None:
    """Refuse a recipe in which a secret is written: recipes are kept and shown.

    Raises:
        InputError: naming the variable whose value it is.
    """
    written = recipe.model_dump_json()
    for value, name in secret_values().items():
        if value in written:
            raise InputError(
                f"the recipe holds the value of {name}: take it out, and give it in the environment or as a Prefect Secret block"
            )


def _set(values: dict[str, Any], assignment: str) -> None:
    name, separator, text = assignment.partition("=")
    if not separator or not name.strip():
        raise InputError(f"--set {assignment!r} is not of the form SECTION.FIELD=VALUE")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"--set {assignment!r}: the value is not YAML: {error}") from error
    digits = value.replace("_", "") if isinstance(value, str) else ""
    if digits.isascii() and digits.isdecimal() and len(digits) < 20:
        value = int(value)
    *path, last = name.strip().split(".")
    target: Any = values
    for part in path:
        if isinstance(target, list) and part.isdigit() and int(part) < len(target):
            target = target[int(part)]
            continue
        if not isinstance(target, dict):
            raise InputError(f"--set {assignment!r}: {part} is not a section")
        target = target.setdefault(part, {})
    if isinstance(target, list) and last.isdigit() and int(last) < len(target):
        target[int(last)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise InputError(f"--set {assignment!r}: {name} is not a field")


class _StrictLoader(yaml.SafeLoader):
    """YAML in which no field is given twice: the first one would be lost without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """A mapping, refused if a name comes twice."""
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((name for name in names if isinstance(name, str) and names.count(name) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        InputError: if the file is missing, no YAML, or no mapping.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except FileNotFoundError:
        folder = path.parent
        near = difflib.get_close_matches(path.name, [p.name for p in folder.glob("*.yaml")] if folder.is_dir() else [], 1)
        hint = f": did you mean {folder / near[0]}?" if near else ""
        raise InputError(f"there is no {what} {path}{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the {what} {path} cannot be read: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        fault = " ".join(str(error).split()).replace('in "<unicode string>", ', "at ")
        raise InputError(f"the {what} {path} is not YAML: {fault}") from error
    if not isinstance(values, dict):
        raise InputError(f"the {what} {path} is not a mapping of sections to fields")
    return values


def load_recipe(path: Path, assignments: list[str] | None = None, machine: Path | None = None) -> Recipe:
    """Read a recipe, apply --set assignments and a machine file, and check it as a whole.

    Paths of sources that are relative are taken from the current folder.

    Raises:
        InputError: with one sentence for each fault.
    """
    recipe = load_any_recipe(path, assignments, machine)
    if not isinstance(recipe, Recipe):
        raise InputError(f"{path} has a base, so it is a recipe for fine-tuning: use `scratchlm finetune {path}`")
    return recipe


def load_any_recipe(path: Path, assignments: list[str] | None = None, machine: Path | None = None) -> AnyRecipe:
    """Like `load_recipe`; a recipe with the field base is one for fine-tuning."""
    values = read_yaml(path, "recipe")
    values.setdefault("name", path.stem)
    if machine:
        values["machine"] = read_yaml(machine, "machine file")
    for assignment in assignments or []:
        _set(values, assignment)
    kind: type[AnyRecipe] = FinetuneRecipe if "base" in values or "read_conversations" in values else Recipe
    try:
        recipe = kind.model_validate(values)
    except ValidationError as error:
        raise InputError(explain(error, str(path), str(machine) if machine else None, kind)) from None
    check_no_secrets(recipe)
    return recipe
