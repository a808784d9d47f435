"""Conversations: their shapes, the one template, what is trained, and what no message can forge."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from model.chat_template import encode_conversation, fast_tokenizer
from model.config import ModelConfig
from model.errors import InputError
from model.objectives.masked_documents import documents_of
from model.tokenizer import END_OF_TEXT, end_of_text_id, load_tokenizer
from model.tokens import open_tokens
from model.transformer import Transformer
from tasks.engine.stage import Artifact, Parts, Shard
from tasks.evaluation.evaluate_answers import _prompt_and_nats
from tasks.tables import read_table, write_table
from tasks.text.conversation_shapes import BadConversation, messages_of, preference_of
from tasks.text.deduplicate_conversations import deduplicate_conversations
from tasks.text.read_conversations import ReadConversationsConfig, read_conversations
from tasks.text.selection import SELECTION_SCHEMA
from tasks.text.sources import Source
from tasks.text.verdicts import VERDICTS
from tasks.tokens.tokenize_conversations import TokenizeConversationsConfig, _fit, tokenize_conversations

QUESTION, ANSWER = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "He."}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [QUESTION, ANSWER]},
        {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "He."}]},
        {"instruction": "Who?", "input": "", "output": "He."},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Who?"}]}, ANSWER], "id": 3},
    ],
)
def test_every_shape_gives_the_same_messages(row: dict):
    assert messages_of(row) == [QUESTION, ANSWER]


def test_an_instruction_with_input_and_system():
    found = messages_of({"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be brief."})
    assert [message["role"] for message in found] == ["system", "user", "assistant"]
    assert found[1]["content"] == "Add.\n\n1 2"


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"messages": [QUESTION]}, "no turn of the assistant"),
        ({"messages": [ANSWER, QUESTION]}, "no turn of the user before"),
        ({"messages": [QUESTION, {"role": "assistant", "content": " \n"}]}, "message 2 is empty"),
        ({"messages": [{"role": "tool", "content": "x"}, ANSWER]}, "message 1 has the role 'tool'"),
        ({"messages": [QUESTION, {"role": "system", "content": "x"}, ANSWER]}, "message 2 is of the system"),
        ({"messages": [{"role": "user", "content": None}, ANSWER]}, "the content of message 1 is NoneType"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, ANSWER]}, "a part of type 'image'"),
        ({"messages": [{"role": ["user"], "content": "x"}, ANSWER]}, r"message 1 has the role \['user'\]"),
        ({"messages": [{"role": "user", "content": [{"type": ["text"]}]}, ANSWER]}, "a part of type"),
        ({"messages": "hello"}, "not a list of objects"),
        ({"text": "hello"}, "none of the fields messages, conversations"),
        (["hello"], "not an object"),
    ],
)
def test_what_is_no_conversation_is_named(row: object, sentence: str):
    with pytest.raises(BadConversation, match=sentence):
        messages_of(row)


def test_preferences():
    chosen, rejected = preference_of({"prompt": "Who?", "chosen": "He.", "rejected": "She."})
    assert chosen == [QUESTION, ANSWER]
    assert rejected[-1]["content"] == "She."
    with pytest.raises(BadConversation, match="are equal"):
        preference_of({"prompt": "Who?", "chosen": "He.", "rejected": " He.\n"})
    with pytest.raises(BadConversation, match="last turn alone"):
        preference_of(
            {
                "chosen": [QUESTION, ANSWER],
                "rejected": [{**QUESTION, "content": "Why?"}, {**ANSWER, "content": "x"}],
            }
        )


@pytest.fixture(scope="module")
def fast(tokenizer: Artifact):
    return fast_tokenizer(load_tokenizer(tokenizer.path), chat=True)


pieces = st.text(max_size=20) | st.sampled_from(
    [END_OF_TEXT, "<|endof", "text|>", "\nassistant\n", "assistant\n", " ", "\n"]
)
content = st.lists(pieces, min_size=1, max_size=6).map("".join).filter(lambda text: text.strip())
conversations = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), content), min_size=1, max_size=5)


def test_an_answer_is_judged_whole_or_not_at_all(fast):
    """By a model to which every token is alike."""
    config = ModelConfig(n_layers=1, d_model=16, n_heads=2, context_length=64)
    model = Transformer(config, len(fast)).eval()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    for n_words in (1, 20, 200):
        answer = {"role": "assistant", "content": "x y " * n_words}
        ids, mask = encode_conversation(fast, [QUESTION, answer])
        found = _prompt_and_nats(model, fast, [QUESTION, answer], "cpu")
        if sum(mask) > config.context_length:
            assert found is None
        else:
            assert found is not None
            assert found[1] == pytest.approx(sum(mask) * math.log(len(fast)), rel=1e-5)
            assert ids[: len(found[0])] == found[0]
    assert found is None


@settings(max_examples=150, deadline=None)
@given(turns=conversations)
def test_no_message_forges_an_end_and_each_learnt_token_is_the_assistants(fast, turns):
    messages = [{"role": role, "content": text} for role, text in turns]
    ids, mask = encode_conversation(fast, messages)
    end = fast.eos_token_id
    assert ids[0] == end
    assert ids[-1] == end
    assert ids.count(end) == len(messages) + 1
    starts = [i + 1 for i, token in enumerate(ids) if token == end]
    for (role, text), start, stop in zip(turns, starts, starts[1:], strict=False):
        assert fast.decode(ids[start:stop]).startswith(f"{role}\n")
        said = fast.decode(
            [token for token, own in zip(ids[start:stop], mask[start:stop], strict=True) if own]
        )
        shown = text.strip().replace(END_OF_TEXT, "< |endoftext|>")
        assert said == (shown + END_OF_TEXT if role == "assistant" else "")


@settings(max_examples=50, deadline=None)
@given(turns=conversations)
def test_what_is_trained_is_what_the_exported_tokenizer_gives(fast, tmp_path_factory, turns):
    folder = tmp_path_factory.getbasetemp() / "exported"
    if not folder.exists():
        fast.save_pretrained(folder)
    stock = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": role, "content": text} for role, text in turns]
    ids, _ = encode_conversation(fast, messages)
    assert stock.apply_chat_template(messages, return_dict=True)["input_ids"] == ids
    asked = stock.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert asked[: len(ids)] == ids
    assert stock.decode(asked[len(ids) :]) == "assistant\n"


def test_an_unknown_role_is_refused_by_the_template_too(fast):
    with pytest.raises(Exception, match="unknown role"):
        fast.apply_chat_template([{"role": "judge", "content": "x"}])


def read(folder: Path, rows: list[dict], **fields) -> tuple[Artifact, dict]:
    (folder / "data").mkdir()
    (folder / "data" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / "out"
    out.mkdir()
    config = ReadConversationsConfig(sources=(Source(path=str(folder / "data")),), **fields)
    figures = read_conversations.fn(config, out=out)
    return Artifact(out, tuple(sorted((out / "shards").iterdir()))), figures


def test_a_bad_row_is_named_with_its_line_and_too_many_stop_the_run(tmp_path: Path):
    rows = [{"messages": [QUESTION, ANSWER]}, {"messages": [QUESTION]}]
    documents, figures = read(tmp_path, rows, max_error_rate=0.5)
    (error,) = [
        json.loads(line) for line in (documents.path / "figures" / "errors.jsonl").read_text().splitlines()
    ]
    assert (error["where"], error["error"]) == ("a.jsonl:1", "it has no turn of the assistant")
    assert (error["rows"], figures["lost_bytes"]) == (1, error["bytes"])
    assert figures["documents"] == 1
    (tmp_path / "again").mkdir()
    with pytest.raises(
        InputError,
        match=r"(?s)of the bytes cannot be used.*a\.jsonl, line 2: it has no turn of the assistant.*errors\.jsonl",
    ):
        read(tmp_path / "again", rows, max_error_rate=0.2)


def test_the_same_said_twice_stays_once(tmp_path: Path):
    loud = [{"role": "user", "content": "WHO?  "}, ANSWER]
    other = [{"role": "user", "content": "Who then?"}, ANSWER]
    documents, _ = read(tmp_path, [{"messages": [QUESTION, ANSWER]}, {"messages": loud}, {"messages": other}])
    out = tmp_path / "verdicts"
    figures = deduplicate_conversations.fn(documents=documents, out=out)
    kept = [row["kept"] for row in read_table(out / "shards" / "00000" / VERDICTS).to_pylist()]
    assert figures["removed"] == 1
    assert kept[2]
    assert sum(kept) == 2


def tokenize(
    folder: Path, documents: Artifact, tokenizer: Artifact, context_length: int = 256
) -> tuple[Path, dict]:
    (shard,) = documents.shards
    names = read_table(shard / "documents.parquet", ["id"]).column("id").to_pylist()
    rows = [
        {"id": name, "side": "train" if i else "validation", "reason": None} for i, name in enumerate(names)
    ]
    write_table(folder / "selection" / "selection.parquet", rows, SELECTION_SCHEMA)
    config = TokenizeConversationsConfig(context_length=context_length)
    figures = tokenize_conversations.fn(
        config,
        documents=Shard(shard),
        selection=Shard(folder / "selection"),
        tokenizer=tokenizer,
        out=folder / "tokens",
    )
    return folder / "tokens", figures


def test_shards_hold_ids_and_mask(tmp_path: Path, tokenizer: Artifact, fast):
    talks = [[QUESTION, {**ANSWER, "content": f"He {i}."}, QUESTION, ANSWER] for i in range(5)]
    documents, _ = read(tmp_path, [{"messages": talk} for talk in talks])
    folder, figures = tokenize(tmp_path, documents, tokenizer)
    found = documents_of([open_tokens(folder / "train.arrow")])
    for document, talk in zip(found, talks[1:], strict=True):
        ids, mask = encode_conversation(fast, talk)
        assert document.ids.tolist() == ids
        assert document.trained.tolist() == mask
        assert document.targets[np.array(mask[1:]) == 1].tolist() == [
            token for token, own in zip(ids, mask, strict=True) if own
        ]
    assert figures["train"]["trained_tokens"] == sum(int(document.trained.sum()) for document in found)


def test_of_a_pair_the_last_turn_alone_is_compared(tmp_path: Path, tokenizer: Artifact):
    rows = [
        {"prompt": [QUESTION, ANSWER, QUESTION], "chosen": f"He {i}.", "rejected": f"She {i}."}
        for i in range(3)
    ]
    documents, _ = read(tmp_path, rows, kind="preferences")
    folder, _ = tokenize(tmp_path, documents, tokenizer)
    loaded = load_tokenizer(tokenizer.path)
    found = documents_of([open_tokens(folder / "train.arrow")])
    said = [
        loaded.decode(document.ids[document.trained == 1].tolist(), skip_special_tokens=True)
        for document in found
    ]
    assert said == ["He 1.", "She 1.", "He 2.", "She 2."]


def test_a_conversation_longer_than_the_context_is_named(tmp_path: Path, tokenizer: Artifact):
    long = [QUESTION, {**ANSWER, "content": "He went there. " * 40}]
    documents, _ = read(tmp_path, [{"messages": [QUESTION, ANSWER]}, {"messages": long}])
    _, figures = tokenize(tmp_path, documents, tokenizer, context_length=64)
    config = TokenizeConversationsConfig(context_length=64)
    with pytest.raises(
        InputError,
        match=r"1 of 2 conversations are longer than the context of 64 tokens \(the longest is text/a.jsonl:1",
    ):
        _fit(config, Parts((), figures, None, tmp_path))


def test_the_end_of_text_is_the_only_special_token(tokenizer: Artifact):
    loaded = load_tokenizer(tokenizer.path)
    assert list(loaded.get_added_tokens_decoder()) == [end_of_text_id(loaded)]
