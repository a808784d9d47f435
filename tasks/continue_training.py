"""continue_training: go on from the weights of an earlier model, on new text with old text replayed."""

import json
from pathlib import Path

from pydantic import Field

from tasks.errors import InputError
from tasks.find_new import NEW
from tasks.machine import Machine
from tasks.stage import Artifact, Metrics, stage
from tasks.train_model import TrainModelConfig, train_under_torchrun


class ContinueTrainingConfig(TrainModelConfig):
    """Like train_model, with the proportion of old text."""

    replay_weight: float = Field(ge=0, le=1, description="Share of the windows that come from text which is not new.")


@stage(libraries=("torch", "deepspeed", "numpy", "pyarrow", "xxhash", "safetensors", "tokenizers", "peft"), retries=2)
def continue_training(
    config: ContinueTrainingConfig, start: Artifact, tokens: Artifact, tokenizer: Artifact, new: Artifact,
    out: Path, work: Path, machine: Machine,
) -> Metrics:  # fmt: skip
    """Write what train_model writes.

    Args:
        start: the model to go on from.
        new: result of find_new for these tokens.

    Raises:
        InputError: if the earlier model has another shape or tokenizer, or there is too little text on a side.
    """
    from model.batches import Windows
    from model.config import ModelConfig
    from model.tokens import open_tokens, select_documents
    from tasks.train_tokenizer import tokenizer_sha256

    description = json.loads((start.path / "model.json").read_text())
    if ModelConfig.model_validate(description["model"]) != config.model:
        raise InputError(
            "the recipe's section model is not that of the champion, so training cannot go on from its weights: "
            "set retrain.start to scratch, or the section model back"
        )
    if description["tokenizer_sha256"] != tokenizer_sha256(tokenizer.path):
        raise InputError(
            "the champion was trained with another tokenizer, so training cannot go on from its weights: "
            "set retrain.tokenizer to keep, or retrain.start to scratch"
        )
    ids = new.path / NEW.format(side="train")
    chosen = set(json.loads(ids.read_text()))
    shards = [open_tokens(path / "train.arrow", description["tokenizer_sha256"]) for path in tokens.shards]
    for inside, share, what in ((True, 1 - config.replay_weight, "new"), (False, config.replay_weight, "old")):
        pieces = [piece for shard in shards for piece in select_documents(shard, chosen, inside=inside)]
        if share and not len(Windows(pieces, config.model.context_length)):
            n_tokens = sum(map(len, pieces))
            raise InputError(
                f"the {what} text has {n_tokens} tokens for training, less than one window of model.context_length "
                f"({config.model.context_length}): set retrain.start to scratch, or wait for more text"
            )
    shape = TrainModelConfig(model=config.model, train=config.train)
    return train_under_torchrun(
        shape, tokens, tokenizer, out, work, machine, start=start.path, new_documents=ids, replay_weight=config.replay_weight
    )
