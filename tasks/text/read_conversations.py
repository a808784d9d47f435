"""read_conversations: a snapshot of conversations or preference pairs, as shards of documents."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tasks.engine.sources import SourceDigests
from tasks.engine.stage import Metrics, Parts, stage
from tasks.text.conversation_shapes import BadConversation, messages_of, plain_text, preference_of
from tasks.text.document_shards import finish_reading, write_documents
from tasks.text.pieces import list_pieces
from tasks.text.records import Record
from tasks.text.sources import IngestConfig, Source


class ReadConversationsConfig(IngestConfig):
    """Where the conversations come from: JSONL, Parquet or datasets in the shapes of OpenAI, ShareGPT and Alpaca."""

    kind: Literal["conversations", "preferences"] = Field(
        "conversations",
        description="conversations: answers to learn; preferences: pairs of a chosen and a rejected answer.",
    )
    group_field: str = Field(
        "group", description="Field that names the group of a row; held-out answers are counted by it."
    )


@stage(
    libraries=("pyarrow", "datasets", "huggingface_hub", "resiliparse", "fsspec"),
    retries=2,
    role="read",
    fingerprint=lambda config, digests: list_pieces(config, digests).each,
)
def read_conversations(config: ReadConversationsConfig, out: Path) -> Metrics:
    """Write what ingest writes: text is all contents, metadata has the messages (or chosen and rejected), the group,
    and the form of the answer: a regular expression, by which held-out answers are judged beside their text.

    Raises:
        InputError: if nothing can be read, or more than `max_error_rate` cannot; errors.jsonl
            names each bad row with its line and reason.
    """

    def convert(source: Source, where: str, row: int, value: Any) -> Record:
        try:
            if config.kind == "preferences":
                chosen, rejected = preference_of(value)
                metadata: dict[str, Any] = {"chosen": chosen, "rejected": rejected}
                text = plain_text([*chosen, rejected[-1]])
            else:
                metadata = {"messages": messages_of(value)}
                text = plain_text(metadata["messages"])
            text.encode()
        except BadConversation as error:
            return Record(where, row, error=str(error))
        except UnicodeEncodeError:
            return Record(where, row, error="it has a lone surrogate, so it is not Unicode")
        own_id = value.get(source.id_field)
        for name, own in (("group", config.group_field), ("form", "form")):
            if isinstance(value.get(own), str):
                metadata[name] = value[own]
        return Record(where, row, text, None if own_id is None else str(own_id), metadata)

    pieces = list_pieces(config, SourceDigests()).each
    metrics = write_documents(config, pieces, out, convert)
    return finish_reading(config, Parts((out,), metrics, tuple(pieces), out))
