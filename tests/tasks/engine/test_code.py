"""Code in keys: what is resolved, what is an error, and that what runs is what was read."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.errors import InputError
from tasks.engine import code
from tasks.engine.code import PROJECT, code_digests, module_file, normalized
from tests.conftest import ROOT, Toy

DIGEST = "import sys; from tasks.engine.code import code_digests; print(code_digests(sys.argv[1]))"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `mine` on the path, whose module stages imports the module other."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "stages.py").write_text("from mine import other\nfrom mine.other import VALUE\n")
    (folder / "other.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    code._package_folder.cache_clear()
    yield folder
    code._package_folder.cache_clear()


@pytest.mark.parametrize("name", PROJECT)
def test_a_folder_of_the_same_name_hides_none_of_our_code(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = code_digests("tasks.training.train_model")
    (tmp_path / name).mkdir()
    (tmp_path / name / "transformer.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    code._package_folder.cache_clear()
    assert module_file(f"{name}.__init__") == ROOT / name / "__init__.py"
    assert code_digests("tasks.training.train_model") == expected
    assert "model.transformer" in expected


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("stages.py", "import mine.nothing\n"),
        ("stages.py", "def late():\n    from mine.nothing import VALUE\n"),
        ("stages.py", "from . import compiled\n"),
        ("stages.py", "from mine import bare\n"),
        ("other.py", "from tasks.text.nothing import VALUE\n"),
    ],
)
def test_an_import_without_a_source_is_an_error(package: Path, file: str, text: str):
    assert set(code_digests("mine.stages")) == {"mine", "mine.stages", "mine.other"}
    (package / "compiled.pyc").write_bytes(b"")
    (package / "bare").mkdir()
    (package / "bare" / "inner.py").write_text("")
    (package / file).write_text(text + "VALUE = 10\n")
    with pytest.raises(InputError, match=r"which mine\.\w+ imports, has no source file"):
        code_digests("mine.stages")


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("from a import f\nfrom b import g", "from b import g\nfrom a import f", True),
        ("from a import f\nfrom b import f", "from b import f\nfrom a import f", False),
        ("from a import f\nimport b as f", "import b as f\nfrom a import f", False),
        ("from a import *\nfrom b import g", "from b import g\nfrom a import *", False),
        ("import a.b\nimport a.c", "import a.c\nimport a.b", True),
    ],
)
def test_the_order_of_imports_is_code_where_one_hides_another(before: str, after: str, same: bool):
    assert (normalized(before) == normalized(after)) == same


def test_two_edits_with_equal_times_run_as_they_are_read(toy: Toy):
    """Size and time of change are equal, which is all that Python compares by default."""
    path = toy.library / "toy" / "arithmetic.py"
    kept, sums = os.stat(path), {}
    for former, operator in (("*", "*"), ("*", "+"), ("+", "-"), ("-", "*")):
        toy.edit("arithmetic", f"number {former} factor", f"number {operator} factor")
        os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
        notes = toy.run(
            env={"PYTHONDONTWRITEBYTECODE": ""}
        )  # bytecode is written, also where these tests write none
        sums[operator] = (Path(notes["total"]["path"]) / "out" / "total").read_text()
    assert sums == {"*": "12", "+": "12", "-": "0"}


def test_code_that_is_edited_while_it_runs_is_published_under_no_key(toy: Toy):
    """The module is imported late, by a stage that has begun, and changes before."""
    toy.edit(
        "stages", "    text = (numbers", "    from toy import late\n\n    late.edit()\n    text = (numbers"
    )
    (toy.library / "toy" / "late.py").write_text(
        "from pathlib import Path\n\n\n"
        "def edit():\n"
        "    path = Path(__file__).with_name('arithmetic.py')\n"
        "    path.write_text(path.read_text() + 'EDITED = True\\n')\n"
    )
    answer = toy.run(fails=True)
    assert "its code was edited after the run began" in answer["failed"]
    assert not (toy.store / "shards").exists()


def test_python_is_in_the_key(toy: Toy):
    notes = toy.run()
    manifest = json.loads((Path(notes["total"]["path"]) / "manifest.json").read_text())
    assert manifest["ingredients"]["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"


def test_parsing_in_another_thread_at_the_same_moment_is_survived(monkeypatch: pytest.MonkeyPatch):
    import ast

    real, failures = (
        ast.parse,
        [SystemError("AST constructor recursion depth mismatch (before=78, after=70)")] * 3,
    )

    def parse(source: str) -> ast.Module:
        if failures:
            raise failures.pop()
        return real(source)

    monkeypatch.setattr(ast, "parse", parse)
    assert normalized("x = 1") == ast.dump(real("x = 1"))
