"""Text of PDF and office files, each converted by a library of its own in a process that may be ended.

The libraries are the extra `office`. What they make of a file may change with their version, so that is in the piece of
the file, and in no other key.
"""

import os
import posixpath
import re
import resource
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from model.errors import StageFailed
from tasks.engine import process

LIBRARIES = {".pdf": "pypdfium2", ".docx": "mammoth", ".pptx": "python-pptx", ".epub": "resiliparse"}
"""What converts files of which kind."""
MEND = "pip install 'scratchlm[office]'"
_SECONDS = 120.0
"""Longest time for one file."""
_MOST_UNPACKED_BYTES, _MOST_MEMORY_BYTES = 300_000_000, 4 << 30
"""Of what is in a packed file, pictures included, and of the process that converts."""


class BadFile(ValueError):
    """A file that cannot be converted."""


def version_of(distribution: str) -> str | None:
    """Version of a library; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def is_installed(suffix: str) -> bool:
    """Whether files of this kind can be converted."""
    return None not in (version_of("pebble"), version_of(LIBRARIES[suffix]))


def _pdf(path: Path) -> str:
    import pypdfium2

    with pypdfium2.PdfDocument(path) as document:
        # A form feed between pages, as pdftotext writes it.
        text = "\f".join(page.get_textpage().get_text_range() for page in document)
    # PDFium writes U+FFFE for a hyphen at the end of a line that is not one of the word.
    return re.sub("\ufffe\\s*", "", text.replace("\r\n", "\n"))


def _docx(path: Path) -> str:
    import mammoth

    from tasks.text.html import whole_text

    with path.open("rb") as file:
        # Without pictures, which would become text in base64.
        html = mammoth.convert_to_html(
            file, convert_image=mammoth.images.img_element(lambda image: {"src": ""})
        )
    return whole_text(html.value)


def _shapes(shapes: Any) -> Iterator[Any]:
    """Shapes, also those in groups."""
    for shape in shapes:
        yield from _shapes(shape.shapes) if hasattr(shape, "shapes") else (shape,)


def _pptx(path: Path) -> str:
    from pptx import Presentation

    slides = []
    for slide in Presentation(str(path)).slides:
        all_shapes = list(_shapes(slide.shapes))
        shapes = [shape.text_frame.text for shape in all_shapes if shape.has_text_frame]
        tables = [
            "\n".join("\t".join(cell.text for cell in row.cells) for row in shape.table.rows)
            for shape in all_shapes
            if shape.has_table
        ]
        notes = [slide.notes_slide.notes_text_frame.text] if slide.has_notes_slide else []
        slides.append("\n".join(filter(str.strip, shapes + tables + notes)))
    return "\f".join(slides)


def _epub(path: Path) -> str:
    """The chapters in the order of the book's spine (EPUB 3.3, section 5.7)."""
    from lxml import etree

    from tasks.text.html import whole_text

    safe = etree.XMLParser(resolve_entities=False, no_network=True)
    with zipfile.ZipFile(path) as book:
        container = etree.fromstring(book.read("META-INF/container.xml"), safe)
        root_file = container.find(".//{*}rootfile").get("full-path")
        package = etree.fromstring(book.read(root_file), safe)
        files = {item.get("id"): item.get("href") for item in package.iterfind(".//{*}manifest/{*}item")}
        folder = root_file.rpartition("/")[0]
        links = [files[item.get("idref")] for item in package.iterfind(".//{*}spine/{*}itemref")]
        # Each chapter once, however often a spine names it.
        names = dict.fromkeys(posixpath.normpath(posixpath.join(folder, unquote(link))) for link in links)
        pages = [book.read(name) for name in names]
    return "\f".join(whole_text(_decoded(page)) for page in pages)


def _decoded(page: bytes) -> str:
    """A chapter, in the encoding that its first line names (XML 1.0, section 4.3.3)."""
    named = re.match(rb"""\s*<\?xml[^>]{0,100}encoding=["']([\w.-]{1,40})""", page)
    encoding = (
        "utf-16" if page[:2] in (b"\xff\xfe", b"\xfe\xff") else named[1].decode() if named else "utf-8-sig"
    )
    return page.decode(encoding)


_CONVERTERS: dict[str, Callable[[Path], str]] = {".pdf": _pdf, ".docx": _docx, ".pptx": _pptx, ".epub": _epub}


def _convert(suffix: str, path: Path, limit: int) -> str:
    if suffix != ".pdf":
        with zipfile.ZipFile(path) as packed:
            # A small file that becomes a large one is refused before it is unpacked.
            if sum(entry.file_size for entry in packed.infolist()) > min(10 * limit, _MOST_UNPACKED_BYTES):
                raise ValueError("it is far larger when it is unpacked")
    return _CONVERTERS[suffix](path)


@cache
def _pool() -> Any:
    """One process: a file that ends it, or takes too long, costs itself."""
    import multiprocessing

    from pebble import ProcessPool

    return ProcessPool(
        max_workers=1,
        context=multiprocessing.get_context("spawn"),
        initializer=_bound,
        initargs=(os.getpid(),),
    )


def _bound(parent: int) -> None:
    """Let the process end with its parent, and take no more memory than a file may."""
    process.die_with_parent(parent)
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY_BYTES, _MOST_MEMORY_BYTES))


def text_of_file(suffix: str, path: Path, limit: int) -> str:
    """The text of a file, pages apart by form feeds.

    Raises:
        BadFile: if it cannot be converted, for whatever reason that lies in it.
        StageFailed: if the library that converts such files is not there, or cannot be imported.
    """
    from concurrent.futures import TimeoutError as TookTooLong

    try:
        return str(_pool().schedule(_convert, (suffix, path, limit), timeout=_SECONDS).result())
    except TookTooLong:
        raise BadFile(f"its conversion takes longer than {_SECONDS:g} seconds") from None
    except ImportError as error:
        raise StageFailed(f"{LIBRARIES[suffix]} is not whole on this computer ({error}): {MEND}") from None
    except Exception as error:
        told = " ".join(str(error).split())[:100]
        raise BadFile(f"it cannot be converted: {type(error).__name__} ({told})") from None
