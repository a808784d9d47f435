"""adapt_model: continued pre-training of a base model on the text of a domain, with old text replayed."""

from pathlib import Path

from tasks.errors import InputError
from tasks.finetune_model import FinetuneConfig, base_shape, describe_adapter, whole_steps
from tasks.machine import Machine
from tasks.stage import Artifact, Metrics, stage
from tasks.train_model import TrainModelConfig, train_under_torchrun


class AdaptModelConfig(FinetuneConfig):
    """The section finetune of a recipe that has text."""


@stage(libraries=("torch", "deepspeed", "numpy", "pyarrow", "xxhash", "safetensors", "tokenizers", "peft"), retries=2)
def adapt_model(
    config: AdaptModelConfig, base: Artifact, tokens: Artifact, replay: Artifact, tokenizer: Artifact,
    out: Path, work: Path, machine: Machine,
) -> Metrics:  # fmt: skip
    """Write what finetune_model writes.

    Args:
        tokens: those of the domain's text, made by the base's tokenizer.
        replay: those that the base was trained on; the domain's again if replay_weight is 0.

    Raises:
        InputError: if there is too little text for a window, or machine and recipe do not fit.
    """
    from model.batches import Windows
    from model.tokens import open_tokens

    model, digest = base_shape(base, tokenizer)
    if config.tokens_per_batch % model.context_length:
        raise InputError(
            f"finetune.tokens_per_batch ({config.tokens_per_batch}) must be a multiple of the base's context of {model.context_length} tokens"
        )
    n_windows = len(Windows([open_tokens(path / "train.arrow", digest).ids for path in tokens.shards], model.context_length))
    if not n_windows:
        raise InputError(
            f"the domain's text is less than one window of the base's context ({model.context_length} tokens): add text"
        )
    places = config.epochs * n_windows * model.context_length / (1 - config.replay_weight)
    replayed = [path / "train.arrow" for path in replay.shards] if config.replay_weight else []
    figures = train_under_torchrun(
        TrainModelConfig(model=model, train=whole_steps(config, places)), tokens, tokenizer, out, work, machine,
        start=base.path, adapter=config.adapter, replay_shards=replayed, replay_weight=config.replay_weight,
    )  # fmt: skip
    if config.adapter:
        describe_adapter(out, config.adapter, base.path)
    return figures
