"""The digest of a stage's code: its module and every project module that it imports, read without importing."""

import ast
import gc
import hashlib
import importlib.machinery
import importlib.util
import os
import py_compile
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

from model.errors import InputError
from tasks.engine.known_sources import KnownSources

PROJECT = ("flows", "model", "tasks")
ENGINE = (
    "tasks.engine",
    "tasks.training.fit",
    "model.budget",
    "model.device",
    "model.errors",
    "model.files",
    "model.goodput",
    "model.imports",
    "model.machine",
    "model.trackers",
)
"""Modules that decide how work is done and not what comes out; the store's format version stands for them."""

_ROOT = Path(__file__).resolve().parents[2]

_WORDING = {"description", "title", "examples"}


def _is_engine(module: str) -> bool:
    return any(module == name or module.startswith(name + ".") for name in ENGINE)


@cache
def _package_folder(package: str) -> Path | None:
    if package in PROJECT:
        # Beside this file, whatever else on the path has the same name.
        return _ROOT / package
    spec = importlib.machinery.PathFinder.find_spec(package, [*sys.path, os.getcwd()])
    if spec is None:
        # An editable installation finds its packages through a finder of its own.
        spec = importlib.util.find_spec(package)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin).with_suffix("") if spec.origin else None


def import_from_here() -> None:
    """Let Python find what is in the working folder, too, after all that it finds elsewhere."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def module_file(module: str) -> Path | None:
    """Source file of a project module, found without importing it; None if there is none."""
    package, *rest = module.split(".")
    folder = _package_folder(package)
    if folder is None:
        return None
    # Strings: this is asked thousands of times for a plan, and paths take ten times as long.
    base = os.path.join(folder, *rest)
    # A package wins over a module of its name, as it does when Python imports.
    for candidate in (os.path.join(base, "__init__.py"), base + ".py"):
        if os.path.isfile(candidate):
            return Path(candidate)
    return None


def _has_no_source(module: str) -> bool:
    """Whether Python would import something of this name that is not a source file: compiled, or a bare folder."""
    package, *rest = module.split(".")
    folder = _package_folder(package)
    if folder is None:
        return False
    base = folder.joinpath(*rest)
    compiled = (*importlib.machinery.EXTENSION_SUFFIXES, *importlib.machinery.BYTECODE_SUFFIXES)
    return any(base.with_name(base.name + suffix).is_file() for suffix in compiled) or (
        base.is_dir() and any(base.glob("*.py"))
    )


class _Normalizer(ast.NodeTransformer):
    """Drop what does not compute: docstrings, wording of fields and of errors, order of imports, what is for typing.

    Attributes:
        imports: every import that is left.
    """

    def __init__(self) -> None:
        self.imports: list[ast.Import | ast.ImportFrom] = []

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        body = getattr(node, "body", None)
        if isinstance(body, list):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                body = [statement for statement in body if not _is_text(statement)]
            node.body = _sort_imports(body)  # type: ignore[attr-defined]
        return node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        # What `if TYPE_CHECKING:` holds never runs.
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
            self.generic_visit(node)
            return node.orelse
        return self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> ast.AST:
        self.imports.append(node)
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        self.imports.append(node)
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        # What is raised ends a build, so how it is worded is in no result.
        if isinstance(node.exc, ast.Call):
            node.exc.args, node.exc.keywords = [], []
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name == "Field":
            node.keywords = [keyword for keyword in node.keywords if keyword.arg not in _WORDING]
        return self.generic_visit(node)


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _sort_imports(body: list[ast.stmt]) -> list[ast.stmt]:
    result: list[ast.stmt] = []
    run: list[ast.Import | ast.ImportFrom] = []
    for statement in body:
        if isinstance(statement, ast.Import):
            run += [ast.Import([alias]) for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            run += [ast.ImportFrom(statement.module, [alias], statement.level) for alias in statement.names]
        else:
            result += _sorted_run(run)
            run = []
            result.append(statement)
    return result + _sorted_run(run)


def _sorted_run(run: list[ast.Import | ast.ImportFrom]) -> list[ast.Import | ast.ImportFrom]:
    """Imports of one name each in a fixed order, unless one hides another: then their order decides."""
    names = [statement.names[0].asname or statement.names[0].name for statement in run]
    return run if len(set(names)) < len(names) or "*" in names else sorted(run, key=ast.dump)


def _parse(source: str) -> ast.Module:
    """The syntax tree of a module.

    CPython counts the depth of its trees for all threads together, and may end in SystemError where another thread
    parses at the same moment (github.com/python/cpython/issues/106905); then it is asked again.
    """
    for _ in range(20):
        try:
            return ast.parse(source)
        except SystemError:
            time.sleep(0.01)
    return ast.parse(source)


def normalized(source: str) -> str:
    """`source` without comments, docstrings, formatting, import order, and the wording of pydantic fields and of errors."""
    return ast.dump(_Normalizer().visit(_parse(source)))


@dataclass(frozen=True)
class Imports:
    """What a module may import, also inside functions, with relative names resolved.

    Attributes:
        modules: names that are modules for sure: `import NAME` and `from NAME import ...`.
        members: names that are modules or something in one: `from PARENT import MEMBER`.
    """

    modules: frozenset[str]
    members: frozenset[str]

    @classmethod
    def of(
        cls, statements: Iterable[tuple[int, str | None, list[str]]], module: str, *, is_package: bool
    ) -> Self:
        """What these statements in the module of this name may import.

        Args:
            statements: level, what is imported from, and names, of each; `import NAME` imports from None.
        """
        modules: set[str] = set()
        members: set[str] = set()
        for level, base, names in statements:
            if base is None:
                modules.update(names)
                continue
            if level:
                parents = module.split(".")[: None if is_package else -1]
                parents = parents[: len(parents) - level + 1]
                base = ".".join([*parents, base] if base else parents)
            modules.add(base)
            members.update(f"{base}.{name}" for name in names)
        return cls(frozenset(modules), frozenset(members))


@dataclass(frozen=True)
class _Source:
    """What is asked of the source of a module.

    Attributes:
        exact: digest of every letter: code that is nobody's here may read its own docstrings, and catch what it raises.
        computing: digest of what computes.
    """

    exact: str
    computing: str
    imports: Imports


_KNOWN = KnownSources(Path(__file__))


def _find(source: str) -> dict[str, Any]:
    """Digest of what computes in a source, and its imports: level, what they import from, and names; nothing for `import NAME`."""
    normalizer = _Normalizer()
    computing = ast.dump(normalizer.visit(_parse(source)))
    imports = [
        [0, None, [alias.name for alias in node.names]]
        if isinstance(node, ast.Import)
        else [node.level, node.module or "", [alias.name for alias in node.names]]
        for node in normalizer.imports
    ]
    return {"computing": _digest(computing), "imports": imports}


@cache
def _read(module: str, path: Path, _stamp: tuple[int, int]) -> _Source:
    """Read a module once, for as long as its file is what it was."""
    source = path.read_text(encoding="utf-8")
    found = _KNOWN.find(source, _find)
    imports = Imports.of(found["imports"], module, is_package=path.name == "__init__.py")
    return _Source(_digest(source), found["computing"], imports)


def _read_now(module: str, path: Path) -> _Source:
    status = os.stat(path)
    return _read(module, path, (status.st_mtime_ns, status.st_size))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Syntax trees are many small objects without cycles: looking for cycles takes as long as all else."""
    is_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_on:
            gc.enable()


@_no_collection()
def code_digests(*modules: str) -> dict[str, str]:
    """Digest of each project module in the import closure of `modules`, themselves included, without the engine.

    Args:
        modules: that of a stage, and those of steps from elsewhere that it takes.

    Raises:
        InputError: if the source of one of them, or of a project module that it imports, is not found: an edit there
            would change no key.
    """
    project = {*PROJECT, *(module.split(".")[0] for module in modules)}
    ours = {*PROJECT, modules[0].split(".")[0]}
    # What lies beside a module that is in no package belongs to it.
    beside = {file.parent for name in modules if "." not in name and (file := module_file(name))}
    digests: dict[str, str] = {}
    pending = [(module, "") for module in modules]
    while pending:
        name, importer = pending.pop()
        if name in digests or name.split(".")[0] not in project or _is_engine(name):
            continue
        path = module_file(name)
        if path is None:
            where = f", which {importer} imports," if importer else ""
            raise InputError(
                f"the module {name}{where} has no source file, so its code cannot be part of a key: "
                "give it one, or install scratchlm again"
            )
        source = _read_now(name, path)
        digests[name] = source.computing if name.split(".")[0] in ours else source.exact
        imports = source.imports
        tops = {found.split(".")[0] for found in imports.modules}
        project |= {top for top in tops if any(_is_in(folder, top) for folder in beside)}
        pending += [(found, name) for found in _project_imports(imports, project)]
    _KNOWN.save()
    return dict(sorted(digests.items()))


def _is_in(folder: Path, name: str) -> bool:
    """Whether a folder has a module of this name."""
    return (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()


def _project_imports(imports: Imports, project: set[str]) -> set[str]:
    """Modules below the project that must have a source: those named, their packages, and members that are modules."""
    needed: set[str] = set()
    for name in imports.modules | imports.members:
        parts = name.split(".")
        if parts[0] in project:
            packages = (".".join(parts[: i + 1]) for i in range(len(parts) - 1))
            needed |= {package for package in packages if module_file(package)}
            if name in imports.modules or module_file(name) or _has_no_source(name):
                needed.add(name)
    return needed


def check_bytecode(modules: Iterable[str]) -> None:
    """Make the bytecode of modules one that Python compares with the content of its source.

    By default it compares whole seconds of the time of change, and the size: of two edits in one second, or with
    their time kept, the older may run.
    """
    for name in modules:
        path = module_file(name)
        assert path is not None
        cached = Path(importlib.util.cache_from_source(str(path)))
        try:
            # PEP 552: four bytes of magic number, then flags; 0b11 is a checked hash.
            is_checked = cached.read_bytes()[:8] == importlib.util.MAGIC_NUMBER + b"\3\0\0\0"
        except OSError:
            is_checked = False
        if not is_checked:
            try:
                py_compile.compile(
                    str(path), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH
                )
            except OSError:
                continue  # an installation that nobody may write to, and so nobody edits


def third_party_imports(module: str) -> set[str]:
    """Top-level names of the modules outside the project and the standard library in the closure of `module`."""
    names: set[str] = set()
    for name in code_digests(module):
        path = module_file(name)
        assert path is not None
        names |= {imported.split(".")[0] for imported in _read_now(name, path).imports.modules}
    return names - set(sys.stdlib_module_names) - {*PROJECT, module.split(".")[0], "", "__future__"}
