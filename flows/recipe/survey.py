"""What there is in a folder of text, before a recipe is written: files, kinds, sizes, letters."""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from model.errors import InputError
from tasks.text.listing import Files, count_skipped, files_of
from tasks.text.readers import read_file
from tasks.text.records import Record, from_mapping, open_file
from tasks.text.sources import Source, kind_of

_SAMPLED_FILES, _SAMPLED_BYTES, _MOST_BYTES = 200, 20_000_000, 100_000_000
_COMMON = ("the", "of", "and", "to", "in", "is", "that")
"""English by these: together above 10% of the words of English prose, and hardly anything of other languages."""


@dataclass
class Survey:
    """What was seen of a source.

    Attributes:
        files: number by extension.
        left_out: number by reason.
        documents, text_bytes: of all of it, from the files that were looked at.
        largest_bytes: of the largest file.
        scripts: share of the letters by script, the commonest first, such as LATIN.
        is_english: whether it looks like English.
        unreadable: what cannot be read of what was looked at: number by reason, each with a place.
        text_field: field of rows that holds the text, if it is not one that is found without being told.
        tables_without_text: files of what was looked at in which no field is known to hold text: why, by name.
    """

    path: str
    files: dict[str, int]
    left_out: dict[str, int]
    file_bytes: int
    largest_bytes: int
    documents: float = 0
    text_bytes: float = 0
    scripts: dict[str, float] = field(default_factory=dict)
    is_english: bool = False
    unreadable: dict[str, tuple[int, str]] = field(default_factory=dict)
    text_field: str | None = None
    tables_without_text: dict[str, str] = field(default_factory=dict)

    @property
    def bytes_per_document(self) -> float:
        """Mean size of a document."""
        return self.text_bytes / max(1.0, self.documents)


_ROWS = ("lines", "json", "table", "parquet")
_FEWEST_CHARACTERS = 30
_FEWEST_BYTES = 5_000


def _longest_field(source: Source, name: str, path: Path) -> str | None:
    """The field of the first rows of a file that holds most text; None if none has sentences in it."""
    lengths: Counter[str] = Counter()
    rows = 0

    def note(source: Source, where: str, row: int, value: object) -> Record:
        nonlocal rows
        rows += 1
        if isinstance(value, dict):
            lengths.update({key: len(item) for key, item in value.items() if isinstance(item, str)})
        return from_mapping(source, where, row, value)

    for _ in islice(read_file(source, name, path, note, _MOST_BYTES), 50):
        pass
    field, length = lengths.most_common(1)[0] if lengths else ("", 0)
    return field if length >= _FEWEST_CHARACTERS * max(1, rows) else None


def _field_with_text(source: Source, files: Files, sizes: dict[Path, int]) -> str | None:
    """Which field of rows has to be named, since nothing else tells; None if none has to be.

    Only where most of the text is in rows: a table beside text is left out instead.
    """
    rows = {
        name: path for name, path in files.by_name.items() if (kind := kind_of(path)) and kind.of in _ROWS
    }
    if sum(sizes[path] for path in rows.values()) <= sum(sizes.values()) / 2:
        return None
    name, path = max(rows.items(), key=lambda item: sizes[item[1]])
    first = next(iter(read_file(source, name, path, from_mapping, _MOST_BYTES)), None)
    if first is None or first.text is not None:
        return None
    return _longest_field(source.model_copy(update={"text_field": "\0"}), name, path)


def _growth(path: Path) -> float:
    """How many bytes a byte of a file becomes when it is decompressed, by its beginning."""
    kind = kind_of(path)
    if kind and kind.of == "parquet":
        import pyarrow.parquet as pq

        metadata = pq.read_metadata(path)
        groups = (metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
        return max(1, sum(groups)) / path.stat().st_size
    if kind is None or not kind.compression:
        return 1.0
    raw, content = open_file(path, kind.compression)
    with raw, content:
        n_bytes = len(content.read(_SAMPLED_BYTES // 8))
        return max(1, n_bytes) / max(1, raw.tell())


def survey(path: str) -> Survey:
    """Look at a file, a folder or a glob, at a sample of it where it is large.

    Raises:
        InputError: if there is nothing to read.
    """
    source = Source(path=path)
    if source.dataset is not None:
        raise InputError(f"{path}: init looks at files; for a dataset write a recipe as in docs/your-text.md")
    files = files_of(source)
    kinds = Counter((kind_of(file) or kind_of(Path("x.jsonl")) or ("", "", ""))[1] for file in files.paths)
    sizes = {file: file.stat().st_size for file in files.paths}
    seen = Survey(
        path, dict(kinds.most_common()), dict(count_skipped(files)), sum(sizes.values()), max(sizes.values())
    )
    seen.text_field = _field_with_text(source, files, sizes)
    source = source.model_copy(update={"text_field": seen.text_field})
    step = max(1, len(files.paths) // _SAMPLED_FILES)
    looked_at, documents, text_bytes, sample = 0.0, 0, 0, []
    for name, file in list(files.by_name.items())[::step]:
        read, is_whole = 0, True
        for record in read_file(source, name, file, from_mapping, _MOST_BYTES):
            read += record.size
            if record.is_other:
                seen.tables_without_text[name] = str(record.error)
            elif record.error:
                count, place = seen.unreadable.get(record.error, (0, record.where))
                seen.unreadable[record.error] = (count + 1, place)
            if record.text:
                documents, text_bytes = documents + 1, text_bytes + len(record.text.encode())
                sample.append(record.text[:2_000])
            if read > _SAMPLED_BYTES // 4:
                is_whole = False
                break
        # Of a file that was read in part, as much as what was read of it takes there.
        looked_at += sizes[file] if is_whole else min(sizes[file], read / _growth(file))
        if text_bytes > _SAMPLED_BYTES:
            break
    if documents and text_bytes < _FEWEST_BYTES and looked_at >= seen.file_bytes:
        raise InputError(
            f"{path} holds {text_bytes:,} bytes of text: too little to train on and to hold some of it out; add text, "
            f"{_FEWEST_BYTES:,} bytes at least, and a million for a model that writes sentences"
        )
    if not documents:
        reasons = "; ".join(
            [
                *(f"{count} {why}" for why, count in seen.left_out.items()),
                *(f"{count} x {why}, such as {place}" for why, (count, place) in seen.unreadable.items()),
            ]
        )
        raise InputError(f"{path} holds no text that can be read{f': {reasons}' if reasons else ''}")
    scale = seen.file_bytes / max(1, looked_at)
    seen.documents, seen.text_bytes = documents * scale, text_bytes * scale
    _look_at_letters(seen, " ".join(sample)[:400_000])
    return seen


def _look_at_letters(seen: Survey, text: str) -> None:
    """Which scripts the letters are of, and whether the words are English."""
    letters = [character for character in text[:50_000] if character.isalpha()]
    names = Counter(unicodedata.name(letter, "OTHER").split()[0] for letter in letters)
    seen.scripts = {name: count / max(1, len(letters)) for name, count in names.most_common(4)}
    words = re.findall(r"[a-z]+", text.lower())
    seen.is_english = sum(words.count(word) for word in _COMMON) > 0.1 * max(1, len(words)) and (
        seen.scripts.get("LATIN", 0) > 0.8
    )
