"""Tokens on disk: one Arrow IPC file a shard, memory-mapped, with a checksum.

`NAME.arrow` holds the ids of whole documents, each begun by the end-of-text id;
`NAME.documents.arrow` names the documents and says where each ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from numpy.lib.array_utils import byte_bounds
from pydantic import BaseModel, ConfigDict

from model.errors import StageFailed

FORMAT_VERSION = 1
_METADATA = b"scratchlm"


class TokensHeader(BaseModel):
    """What a token file says of itself, in the metadata of its Arrow schema."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int
    tokenizer_sha256: str
    vocabulary_size: int
    end_of_text_id: int
    n_tokens: int
    n_documents: int
    n_bytes: int
    checksum: str


class TokensError(StageFailed):
    """A token file is damaged, or belongs to another tokenizer."""


def token_dtype(vocabulary_size: int) -> np.dtype:
    """Smallest unsigned type that holds every id: uint16 up to 65,536 entries, else uint32."""
    return np.dtype(np.uint16 if vocabulary_size <= 65_536 else np.uint32)


def write_tokens(
    path: Path,
    documents: Sequence[np.ndarray],
    ids: Sequence[str],
    sources: Sequence[str],
    byte_counts: Sequence[int],
    *,
    tokenizer_sha256: str,
    vocabulary_size: int,
    end_of_text_id: int,
    trained: Sequence[np.ndarray] | None = None,
) -> TokensHeader:
    """Write `path` (NAME.arrow) and NAME.documents.arrow.

    Args:
        path: file to write.
        documents: for each document its token ids, without end-of-text, any integer dtype.
        ids: id of each document.
        sources: source of each document.
        byte_counts: UTF-8 bytes of each document's text.
        tokenizer_sha256: hash of the tokenizer file.
        vocabulary_size: entries of the tokenizer.
        end_of_text_id: id that is put before each document.
        trained: for each document which of its tokens a loss is taken of, bool; all of them if None.
    """
    dtype = token_dtype(vocabulary_size)
    lengths = np.fromiter((len(document) + 1 for document in documents), np.uint64, len(documents))
    ends = np.cumsum(lengths, dtype=np.uint64)
    tokens = np.empty(int(ends[-1]) if len(documents) else 0, dtype)
    for document, end, length in zip(documents, ends.tolist(), lengths.tolist(), strict=True):
        tokens[end - length] = end_of_text_id
        tokens[end - length + 1 : end] = document
    mask = None
    if trained is not None:
        mask = np.concatenate([piece for each in trained for piece in ([0], each)] or [[]]).astype(np.uint8)
    header = TokensHeader(
        format_version=FORMAT_VERSION,
        tokenizer_sha256=tokenizer_sha256,
        vocabulary_size=vocabulary_size,
        end_of_text_id=end_of_text_id,
        n_tokens=len(tokens),
        n_documents=len(documents),
        n_bytes=sum(byte_counts),
        checksum=_checksum(tokens, mask),
    )
    metadata = {_METADATA: header.model_dump_json().encode()}
    columns = {"tokens": pa.array(tokens)} | ({} if mask is None else {"trained": pa.array(mask)})
    _write(path, pa.table(columns).replace_schema_metadata(metadata))
    table = {
        "end": pa.array(ends, pa.uint64()),
        "id": pa.array(ids, pa.string()),
        "source": pa.array(sources, pa.string()),
        "bytes": pa.array(byte_counts, pa.uint64()),
    }
    _write(path.with_suffix(".documents.arrow"), pa.table(table))
    return header


def _checksum(tokens: np.ndarray, trained: np.ndarray | None) -> str:
    digest = xxhash.xxh3_128(tokens.data)
    if trained is not None:
        digest.update(trained.data)
    return digest.hexdigest()


def _write(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())


@dataclass(frozen=True)
class Tokens:
    """One token file, memory-mapped."""

    path: Path
    header: TokensHeader
    ids: np.ndarray
    trained: np.ndarray | None = None
    """Of which tokens a loss is taken: uint8, 0 or 1, as long as `ids`; None means of all."""

    @cached_property
    def documents(self) -> pa.Table:
        """Columns end (uint64, exclusive), id, source, bytes; a row for each document."""
        with pa.memory_map(str(self.path.with_suffix(".documents.arrow"))) as source:
            return pa.ipc.open_file(source).read_all()


def document_ids(shards: Sequence[Tokens], piece: np.ndarray) -> list[str]:
    """Ids of the documents that a view of the tokens of one of these files is cut from."""
    low, high = byte_bounds(piece)
    for tokens in shards:
        first, last = byte_bounds(tokens.ids)
        if first <= low and high <= last:
            start, stop = (low - first) // piece.itemsize, (high - first) // piece.itemsize
            ends = tokens.documents.column("end").to_numpy()
            begin, end = np.searchsorted(ends, start, side="right"), np.searchsorted(ends, stop)
            return tokens.documents.column("id").slice(begin, end - begin + 1).to_pylist()
    raise ValueError("the piece is of none of these files")


def _mapped(column: pa.ChunkedArray, dtype: np.dtype) -> np.ndarray:
    """The numbers of a column of a mapped file, where they lie. Arrow's own `to_numpy` imports pandas, which takes its time.

    Raises:
        ValueError: if they are not what they should be.
    """
    if column.type.to_pandas_dtype() != dtype or column.null_count:
        raise ValueError(f"a column holds {column.type}, with {column.null_count} nulls, and not {dtype}")
    if not len(column):
        return np.empty(0, dtype)
    numbers = column.chunk(0)
    return np.frombuffer(numbers.buffers()[1], dtype, len(numbers), numbers.offset * dtype.itemsize)


def open_tokens(path: Path, tokenizer_sha256: str | None = None) -> Tokens:
    """Map a token file and check it.

    Raises:
        TokensError: if the file is no token file, its checksum is wrong, or it was made by
            another tokenizer than the one whose hash is given.
    """
    try:
        # The mapping must outlive this function: the arrays are views of it.
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        header = TokensHeader.model_validate_json(table.schema.metadata[_METADATA])
        ids = _mapped(table.column("tokens"), token_dtype(header.vocabulary_size))
        trained = (
            _mapped(table.column("trained"), np.dtype(np.uint8)) if "trained" in table.column_names else None
        )
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # it is the system's, not of what the file holds
        raise TokensError(
            f"{path} is not a token file of scratchlm ({error}): build the stage tokenize again"
        ) from error
    if header.format_version != FORMAT_VERSION:
        raise TokensError(
            f"{path} has format {header.format_version}, this version reads {FORMAT_VERSION}: tokenize again"
        )
    if _checksum(ids, trained) != header.checksum or len(ids) != header.n_tokens:
        raise TokensError(f"{path} is damaged: its checksum is wrong; delete its folder and run again")
    if tokenizer_sha256 not in (None, header.tokenizer_sha256):
        raise TokensError(
            f"{path} was made by tokenizer {header.tokenizer_sha256[:12]}, not by {str(tokenizer_sha256)[:12]}: "
            "tokens and tokenizer do not belong together"
        )
    return Tokens(path, header, ids, trained)
