"""The one chat template: how a conversation becomes ids, at training and at inference.

A conversation is `<|endoftext|>` and then, for each message, its role, a line feed, its content
and `<|endoftext|>`. The one special token is what a tokenizer from scratch has already, so no
embedding is added, and what follows it is a role: content cannot bring it about, because the
template takes every special token in content apart with a space.
"""

import json
from typing import TYPE_CHECKING, Any

from model.errors import InputError
from model.messages import ROLES, Message
from model.tokenizer import end_of_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def chat_template(tokenizer: "Tokenizer") -> str:
    """The Jinja template for a tokenizer; `transformers` renders it wherever the exported model goes."""
    content = "message['content'] | trim"
    for added in tokenizer.get_added_tokens_decoder().values():
        token = added.content
        if len(token) > 1:
            content += f" | replace({json.dumps(token)}, {json.dumps(token[0] + ' ' + token[1:])})"
    end = json.dumps(end_of_text(tokenizer))
    return (
        "{{- " + end + " -}}"
        "{%- for message in messages -%}"
        "{%- if message['role'] not in " + json.dumps(list(ROLES)) + " -%}"
        "{{- raise_exception('unknown role ' + message['role']) -}}"
        "{%- endif -%}"
        "{%- set content = " + content + " -%}"
        "{{- message['role'] + '\\n' -}}"
        "{%- if message['role'] == 'assistant' -%}"
        "{%- generation -%}{{- content + " + end + " -}}{%- endgeneration -%}"
        "{%- else -%}"
        "{{- content + " + end + " -}}"
        "{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- 'assistant\\n' -}}{%- endif -%}"
    )


def fast_tokenizer(tokenizer: "Tokenizer", *, chat: bool, context_length: int = 10**9) -> Any:
    """The tokenizer as `transformers` has it, with the chat template if it is to have one; it warns of longer texts."""
    import transformers

    end = end_of_text(tokenizer)
    fast: Any = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=end,
        eos_token=end,
        pad_token=end,
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    )
    if chat:
        fast.chat_template = chat_template(tokenizer)
    return fast


def encode_conversation(fast: Any, messages: list[Message]) -> tuple[list[int], list[int]]:
    """Ids of a conversation, and for each of them whether the assistant says it (0 or 1).

    Both come from `apply_chat_template`, as they do at inference.

    Raises:
        InputError: if there is a special token where the template put none.
    """
    rendered = fast.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = rendered["input_ids"], rendered["assistant_masks"]
    special = set(fast.added_tokens_decoder)
    if sum(token in special for token in ids) != len(messages) + 1:
        raise InputError(
            "a message spells a special token of the tokenizer in a way that the chat template cannot take apart"
        )
    return ids, mask
