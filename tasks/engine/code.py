"""The digest of a stage's code: its module and every project module that it imports, read without importing."""

import ast
import hashlib
import importlib.machinery
import importlib.util
import os
from functools import cache
from pathlib import Path

PROJECT = ("flows", "model", "tasks")
ENGINE = ("tasks.engine", "model.errors", "model.files", "model.machine")
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
    spec = importlib.machinery.PathFinder.find_spec(package)
    if spec is None:
        # An editable installation finds its packages through a finder of its own.
        spec = importlib.util.find_spec(package)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin).with_suffix("") if spec.origin else None


def module_file(module: str) -> Path | None:
    """Source file of a project module, found without importing it; None if there is none."""
    package, *rest = module.split(".")
    folder = _package_folder(package)
    if folder is None:
        return None
    base = folder.joinpath(*rest)
    for candidate in (base.with_name(base.name + ".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


class _WithoutTyping(ast.NodeTransformer):
    """Drop what `if TYPE_CHECKING:` holds: it never runs."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        return node.orelse if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else node


class _Normalizer(_WithoutTyping):
    """Drop what does not compute: docstrings, wording of fields and of errors, order of imports."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        body = getattr(node, "body", None)
        if isinstance(body, list):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                body = [statement for statement in body if not _is_text(statement)]
            node.body = _sort_imports(body)  # type: ignore[attr-defined]
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
    run: list[ast.stmt] = []
    for statement in body:
        if isinstance(statement, ast.Import):
            run += [ast.Import([alias]) for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            run += [ast.ImportFrom(statement.module, [alias], statement.level) for alias in statement.names]
        else:
            result += sorted(run, key=ast.dump)
            run = []
            result.append(statement)
    return result + sorted(run, key=ast.dump)


def normalized(source: str) -> str:
    """`source` without comments, docstrings, formatting, import order, and the wording of pydantic fields and of errors."""
    return ast.dump(_Normalizer().visit(ast.parse(source)))


@cache
def imported_modules(source: str, module: str, *, is_package: bool = False) -> frozenset[str]:
    """Names of all modules that `source` may import, also inside functions; relative names are resolved."""
    names: set[str] = set()
    for node in ast.walk(_WithoutTyping().visit(ast.parse(source))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if is_package else -1]
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return frozenset(names)


@cache
def _read(path: Path, _stamp: tuple[int, int]) -> tuple[str, str]:
    source = path.read_text(encoding="utf-8")
    return source, hashlib.sha256(normalized(source).encode()).hexdigest()[:32]


def code_digests(module: str) -> dict[str, str]:
    """Digest of each project module in the import closure of `module`, itself included, without the engine.

    Raises:
        LookupError: if the source of `module` is not found.
    """
    project = {*PROJECT, module.split(".")[0]}
    digests: dict[str, str] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        if name in digests or name.split(".")[0] not in project or _is_engine(name):
            continue
        path = module_file(name)
        if path is None:
            if name == module:
                raise LookupError(
                    f"the source of the module {module} is not found, so its code has no digest"
                )
            continue
        status = os.stat(path)
        source, digests[name] = _read(path, (status.st_mtime_ns, status.st_size))
        is_package = path.name == "__init__.py"
        for imported in imported_modules(source, name, is_package=is_package):
            parts = imported.split(".")
            pending += [".".join(parts[: i + 1]) for i in range(len(parts))]
    return dict(sorted(digests.items()))


def third_party_imports(module: str) -> set[str]:
    """Top-level names of the modules outside the project and the standard library in the closure of `module`."""
    import sys

    names: set[str] = set()
    for name in code_digests(module):
        path = module_file(name)
        assert path is not None
        names |= {imported.split(".")[0] for imported in imported_modules(path.read_text(), name)}
    return names - set(sys.stdlib_module_names) - {*PROJECT, module.split(".")[0], "", "__future__"}
