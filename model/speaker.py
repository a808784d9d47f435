"""Talking to a model in a Hugging Face folder: prompts and conversations in, text out."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from model.adapter_folder import apply_adapter_folder
from model.errors import InputError
from model.generate import Sampling, generate_text
from model.hugging_face import load_hugging_face_folder
from model.messages import Message
from model.tokenizer import TOKENIZER, end_of_text_id, load_tokenizer
from model.transformer import Transformer


@dataclass
class Speaker:
    """A loaded model with its tokenizer."""

    folder: Path
    model: Transformer
    tokenizer: Tokenizer
    end_of_text: int
    ends: frozenset[int]

    @cached_property
    def template(self) -> Any:
        """The tokenizer as `transformers` loads it, which renders conversations.

        Raises:
            InputError: if it has no chat template.
        """
        import transformers

        loaded = transformers.AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        loaded.model_max_length = 10**9  # what is too long is forgotten, not warned of
        if not loaded.chat_template:
            raise InputError(
                f"the model in {self.folder} has no chat template, so it can only go on with a text: use `scratchlm generate`, "
                "or make it answer with `scratchlm finetune`"
            )
        return loaded

    def encode(self, prompt: str) -> list[int]:
        """Ids of a text that begins a document; what spells a special token stays text."""
        return [self.end_of_text, *self.tokenizer.encode(prompt, add_special_tokens=False).ids]

    def encode_conversation(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation up to where the assistant answers."""
        rendered = self.template.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return rendered["input_ids"]

    def answer(self, messages: list[Message], sampling: Sampling) -> Iterator[str]:
        """Pieces of the assistant's answer. The oldest turns that do not fit into the context are taken out of `messages`.

        Raises:
            InputError: if the last message alone does not fit.
        """
        context_length = self.model.config.context_length
        room = context_length - min(sampling.max_tokens, context_length // 4)
        while len(ids := self.encode_conversation(messages)) > room:
            first = 1 if messages[0]["role"] == "system" else 0
            if len(messages) - first <= 1:
                raise InputError(
                    f"the message has {len(ids)} tokens, and the model reads {room} at most: shorten it"
                )
            del messages[
                first : first + 2
                if messages[first]["role"] == "user" and len(messages) - first > 2
                else first + 1
            ]
        for (piece,) in generate_text(self.model, self.tokenizer, [ids], sampling, self.ends):
            yield piece


def load_speaker(folder: Path, adapter: Path | None = None) -> Speaker:
    """Load the model and tokenizer of a Hugging Face folder, with an adapter merged if there is one.

    Raises:
        InputError: if it is not one that we can load, or the adapter is not for it.
    """
    model = load_hugging_face_folder(folder)
    if adapter:
        apply_adapter_folder(model, adapter)
    if not (folder / TOKENIZER).is_file():
        raise InputError(f"{folder} holds no {TOKENIZER}: save its fast tokenizer there")
    tokenizer = load_tokenizer(folder)
    settings = folder / "generation_config.json"
    ends = json.loads(settings.read_text()).get("eos_token_id", []) if settings.is_file() else []
    end_of_text = end_of_text_id(tokenizer)
    return Speaker(
        folder,
        model,
        tokenizer,
        end_of_text,
        frozenset([end_of_text, *(ends if isinstance(ends, list) else [ends])]),
    )
