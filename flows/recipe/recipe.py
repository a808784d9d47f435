"""Recipe: the typed configuration of a run, one section a stage that leaves something to choose."""

import difflib
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from model.base_config import Config
from model.config import ModelConfig, TrainConfig
from tasks.benchmarks.index_benchmarks import NGramsConfig
from tasks.engine.machine import Machine
from tasks.evaluation.evaluate_answers import EvaluateAnswersConfig
from tasks.evaluation.evaluate_model import EvaluateModelConfig
from tasks.text.clean import PLUG_INS, STEPS_OF_PROFILE, CleanConfig
from tasks.text.deduplicate import SurvivorConfig
from tasks.text.read_conversations import ReadConversationsConfig
from tasks.text.signatures import MinhashConfig
from tasks.text.sources import PROFILES_OF_AUTO, IngestConfig, Source
from tasks.text.split import SplitConfig
from tasks.tokens.train_tokenizer import TrainTokenizerConfig
from tasks.training.finetune_settings import FinetuneConfig
from tasks.training.hugging_face_folder import ExportModelConfig
from tasks.training.mixture import MixtureConfig
from tasks.training.precision import with_dtype
from tasks.training.settings import TrainModelConfig, check_machine


class RetrainConfig(Config):
    """When a scheduled retraining trains, from what, and what makes a challenger the champion."""

    min_new_documents: int = Field(20, ge=1, description="New documents that are enough to train again.")
    min_new_bytes: int = Field(
        1_000_000, ge=1, description="New text that is enough to train again, in bytes."
    )
    max_age_days: float | None = Field(
        None,
        gt=0,
        description="Age of the champion from which a single new document is enough, in days; never if empty.",
    )
    tokenizer: Literal["keep", "new"] = Field(
        "keep",
        description="keep: the champion's, so that only new shards are tokenized; new: trained on the text of now.",
    )
    start: Literal["scratch", "champion"] = Field(
        "scratch",
        description="scratch: random weights, all text; champion: its weights, new text with old text replayed.",
    )
    replay_weight: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Share of the training windows that come from old text; used by start champion only.",
    )
    margin_bits_per_byte: float = Field(
        0.002,
        ge=0,
        description="The 95% interval of the difference in held-out bits per byte, old and new text in equal weight, must "
        "lie below minus this, in bits per byte.",
    )
    approval: bool = Field(
        False, description="Ask a person in the Prefect UI before a better challenger is promoted."
    )
    approval_hours: float = Field(
        72.0, gt=0, description="Time to wait for that person, in hours; then it is declined."
    )


def check_profiles(clean: CleanConfig, ingest: IngestConfig) -> None:
    """Refuse fields of a step of cleaning that no source takes: they would change nothing.

    Raises:
        ValueError: naming the step and the mend.
    """
    profiles: set[str] = {source.profile for source in ingest.sources}
    if "auto" in profiles:
        profiles = profiles - {"auto"} | set(PROFILES_OF_AUTO)
    taken = {PLUG_INS} | {step for profile in profiles for step in STEPS_OF_PROFILE[profile]}
    defaults = CleanConfig()
    for step in sorted(clean.model_fields_set - taken):
        having = [profile for profile, steps in STEPS_OF_PROFILE.items() if step in steps]
        # What is as it would be anyway may be written down, as run.json does.
        if having and getattr(clean, step) not in (None, getattr(defaults, step)):
            raise ValueError(
                f"clean.{step} is for sources with profile {' or '.join(having)}, and here they have "
                f"{', '.join(sorted(profiles))}: set ingest.sources.0.profile, or leave clean.{step} out"
            )


def check_mixture(mixture: MixtureConfig, names: list[str], held_out: str | None) -> None:
    """Refuse weights of sources that are not there, or are held out.

    Raises:
        ValueError: naming field, value and mend.
    """
    for where, weights in mixture.each():
        for name in weights:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"sources are {', '.join(names)}"
                raise ValueError(f"{where}: {name!r} is no source of ingest: {hint}")
            if name == held_out:
                raise ValueError(
                    f"{where}: {name!r} is held out (split.validation_source): take its weight out"
                )


class Recipe(Config):
    """What becomes of which text: one section for each stage, and the machine apart."""

    name: str = Field(
        "run", pattern=r"^[A-Za-z0-9_.-]+$", description="Name of the recipe; runs of one name are compared."
    )
    ingest: IngestConfig = Field(description="Where the text comes from.")
    clean: CleanConfig = Field(CleanConfig(), description="What is mended and what is dropped.")
    minhash: MinhashConfig = Field(MinhashConfig(), description="Signatures for finding near-duplicates.")
    deduplicate: SurvivorConfig = Field(
        SurvivorConfig(), description="Which of several documents that are alike stays."
    )
    index_benchmarks: NGramsConfig = Field(NGramsConfig(), description="N-grams of benchmark items.")
    split: SplitConfig = Field(SplitConfig(), description="What is held out.")
    train_tokenizer: TrainTokenizerConfig = Field(TrainTokenizerConfig(), description="The tokenizer.")
    model: ModelConfig = Field(ModelConfig(), description="Shape of the Transformer.")
    train_model: TrainConfig = Field(TrainConfig(), description="How it is trained.")
    mixture: MixtureConfig = Field(MixtureConfig(), description="How much of the training each source has.")
    export_model: ExportModelConfig = Field(ExportModelConfig(), description="The Hugging Face folder.")
    evaluate_model: EvaluateModelConfig = Field(EvaluateModelConfig(), description="Benchmarks.")
    retrain: RetrainConfig = Field(RetrainConfig(), description="Scheduled retraining; used by retrain only.")
    machine: Machine = Field(
        Machine(), description="Where and how fast; changes no result and enters no key."
    )

    @model_validator(mode="before")
    @classmethod
    def _dtype_is_known(cls, values: Any) -> Any:
        return with_dtype(values, "train_model")

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        check_machine(TrainModelConfig(model=self.model, train=self.train_model), self.machine)
        check_profiles(self.clean, self.ingest)
        names = [source.name for source in self.ingest.sources]
        if self.split.validation_source is not None:
            if self.split.validation_source not in names:
                near = difflib.get_close_matches(self.split.validation_source, names, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"sources are {', '.join(names)}"
                raise ValueError(
                    f"split.validation_source {self.split.validation_source!r} is no source of ingest: {hint}"
                )
            if len(names) == 1:
                raise ValueError("split.validation_source holds out the only source: add another to train on")
        for name in self.deduplicate.prefer_sources:
            if name not in names:
                raise ValueError(
                    f"deduplicate.prefer_sources: {name!r} is no source of ingest: sources are {', '.join(names)}"
                )
        check_mixture(self.mixture, names, self.split.validation_source)
        if self.mixture.weights and self.retrain.start == "champion":
            raise ValueError(
                "mixture is for training from scratch, and retrain.start is champion: set retrain.start to scratch, or "
                "leave mixture out"
            )
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
        "finetune",
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="Name of the recipe; runs of one name are compared.",
    )
    base: str = Field(
        min_length=1,
        description="A run (latest, or the beginning or end of its name), or a Hugging Face folder with safetensors.",
    )
    context_length: int | None = Field(
        None,
        ge=8,
        description="Length of a training window, in tokens; that of the base, at most 4,096, if empty.",
    )
    read_conversations: ReadConversationsConfig | None = Field(
        None, description="Where the conversations or preferences come from; either this or ingest."
    )
    ingest: IngestConfig | None = Field(
        None,
        description="Where the text of a domain comes from, for continued pre-training; either this or read_conversations.",
    )
    clean: CleanConfig = Field(CleanConfig(), description="What of the text is mended and what is dropped.")
    minhash: MinhashConfig = Field(
        MinhashConfig(), description="Signatures for finding near-duplicates in the text."
    )
    index_benchmarks: NGramsConfig = Field(NGramsConfig(), description="N-grams of benchmark items.")
    split: SplitConfig = Field(SplitConfig(), description="Which conversations are held out.")
    tokenize_conversations: TokenizeConversationsSection = Field(
        TokenizeConversationsSection(), description="Conversations that are too long."
    )
    finetune: FinetuneConfig = Field(FinetuneConfig(), description="How the base is trained further.")
    export_model: ExportModelConfig = Field(ExportModelConfig(), description="The Hugging Face folder.")
    evaluate_answers: EvaluateAnswersConfig = Field(
        EvaluateAnswersConfig(), description="Answers to held-out conversations."
    )
    evaluate_model: EvaluateModelConfig = Field(
        EvaluateModelConfig(tasks=("sciq",), limit=100),
        description="Benchmarks, of base and tuned model; few, since both are measured.",
    )
    machine: Machine = Field(
        Machine(), description="Where and how fast; changes no result and enters no key."
    )

    @model_validator(mode="before")
    @classmethod
    def _dtype_is_known(cls, values: Any) -> Any:
        return with_dtype(values, "finetune")

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        if self.ingest:
            check_profiles(self.clean, self.ingest)
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
