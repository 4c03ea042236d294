"""Signatures read from source text, so that a wrong configuration is refused without the seconds that torch takes to load.

Only what is certain is read: definitions behind plain imports, and decorators that keep signatures. For anything else the
answer is None, and the caller has to import.
"""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec, resolve_name
from inspect import Parameter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, get_type_hints

from sdscratch.config.targets import inside

KEEP_SIGNATURES = {"_defaults_from_env_vars", "classmethod", "dataclass", "register_to_config"}
TYPE_MODULES = {"collections.abc", "pathlib", "typing"}
ALIASES = (ast.Attribute, ast.BinOp, ast.Name, ast.Subscript)


class Import(NamedTuple):
    """`from module import name`."""

    module: str
    name: str


class Definition(NamedTuple):
    """A class, a function or the value of a name, and the module whose names it uses."""

    module: str
    node: ast.AST


def read_signature(path: str) -> tuple[Definition, inspect.Signature] | None:
    """The class, function or class method at a dotted path, and what it takes.

    Annotations are evaluated, with stand-ins of the same name for types that only an import would give.
    """
    owner, _, name = path.rpartition(".")
    if found := _find(owner, name):
        parameters = _parameters(found)
    else:
        outer = _find(*owner.rpartition(".")[::2])
        found = _method(outer, name) if outer else None
        taken = _parameters(found) if found and _decorators(found.node) == {"classmethod"} else None
        parameters = taken[1:] if taken else None
    return None if found is None or parameters is None else (found, inspect.Signature(parameters))


def _parameters(found: Definition) -> list[Parameter] | None:
    """What a function takes, `self` included, or the making of a class, without it."""
    node = found.node
    if not isinstance(node, ast.ClassDef | ast.FunctionDef) or not _decorators(node) <= KEEP_SIGNATURES:
        return None
    if isinstance(node, ast.FunctionDef):
        return [_parameter(found.module, *row) for row in _rows(node.args)]
    if node.keywords or _method(found, "__new__"):  # a metaclass may do anything
        return None
    if init := _method(found, "__init__"):
        taken = _parameters(init)
        return taken[1:] if taken else None
    bases = [_find(found.module, base.id) if isinstance(base, ast.Name) else None for base in node.bases]
    inherited = [_parameters(base) if base else None for base in bases]
    if "dataclass" not in _decorators(node):
        return inherited[0] if len(bases) == 1 else None if bases else []
    fields = {field.name: field for field in _fields(found.module, node)}
    return list(fields.values()) if all(taken == [] for taken in inherited) else None


def _rows(a: ast.arguments) -> Iterator[tuple[ast.arg, Any, ast.expr | None]]:
    """Argument, kind and default, in the order of a signature."""
    positional = [*a.posonlyargs, *a.args]
    defaults = [*[None] * (len(positional) - len(a.defaults)), *a.defaults]
    yield from zip(positional, [Parameter.POSITIONAL_OR_KEYWORD] * len(positional), defaults, strict=True)
    if a.vararg:
        yield a.vararg, Parameter.VAR_POSITIONAL, None
    yield from zip(a.kwonlyargs, [Parameter.KEYWORD_ONLY] * len(a.kwonlyargs), a.kw_defaults, strict=True)
    if a.kwarg:
        yield a.kwarg, Parameter.VAR_KEYWORD, None


def _fields(module: str, node: ast.ClassDef) -> Iterator[Parameter]:
    """What a dataclass takes, its own fields only."""
    keyword_only = any("kw_only=True" in ast.unparse(decorator) for decorator in node.decorator_list)
    kind = Parameter.KEYWORD_ONLY if keyword_only else Parameter.POSITIONAL_OR_KEYWORD
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            is_outside = statement.value is not None and "init=False" in ast.unparse(statement.value)
            if not is_outside and "ClassVar" not in ast.unparse(statement.annotation):
                yield _parameter(module, ast.arg(statement.target.id, statement.annotation), kind, statement.value)


def _parameter(module: str, argument: ast.arg, kind: Any, default: ast.expr | None) -> Parameter:
    value: Any = Parameter.empty if default is None else ...  # any value but None stands for "there is a default"
    if isinstance(default, ast.Constant) and default.value is None:
        value = None
    hint: Any = Parameter.empty
    if argument.annotation is not None:
        try:
            hint = _type(module, argument.annotation)
        except Exception:  # an annotation that means something only at run time says nothing here
            hint = Any
    return Parameter(argument.arg, kind, default=value, annotation=hint)


def _type(module: str, annotation: ast.AST) -> Any:
    """What an annotation means with the names of its module."""
    annotated = SimpleNamespace(__annotations__={"it": ast.unparse(annotation)})
    return get_type_hints(annotated, {}, _Types(module))["it"]


class _Types(dict[str, Any]):
    """The names of a module as its annotations use them, evaluated one by one."""

    def __init__(self, module: str) -> None:
        super().__init__()
        self.module = module

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            raise KeyError(name)
        entry = _names(self.module).get(name)
        if isinstance(entry, Import) and entry.module in TYPE_MODULES:
            return getattr(import_module(entry.module), entry.name)
        found = _find(self.module, name)
        if found and isinstance(found.node, ALIASES):
            return _type(found.module, found.node)
        return _StandIn(name, (), {"__module__": "builtins"})


class _StandIn(type):
    """The type of classes that are known by name only, such as Tensor."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandIn(name, (), {"__module__": "builtins"})

    def __getitem__(cls, item: Any) -> Any:
        return cls


def _find(module: str, name: str) -> Definition | None:
    """Where a name is defined, following imports within the allowed packages."""
    seen: set[Import] = set()
    while isinstance(entry := _names(module).get(name), Import) and entry not in seen:
        seen.add(entry)
        module, name = entry
    return Definition(module, entry) if isinstance(entry, ast.AST) else None


def _method(found: Definition, name: str) -> Definition | None:
    for statement in getattr(found.node, "body", []):
        if isinstance(statement, ast.FunctionDef) and statement.name == name:
            return Definition(found.module, statement)
    return None


def _decorators(node: ast.AST) -> set[str]:
    """Names of decorators, without their modules and arguments."""
    return {ast.unparse(item).partition("(")[0].rpartition(".")[2] for item in getattr(node, "decorator_list", [])}


@cache
def _names(module: str) -> dict[str, ast.AST | Import]:
    """What a module of the allowed packages defines and imports at its top level; the first of several wins."""
    file = _file(module) if inside(module) else None
    if file is None:
        return {}
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    names: dict[str, ast.AST | Import] = {}
    for statement in _statements(ast.parse(file.read_text(encoding="utf-8")).body):
        if isinstance(statement, ast.ClassDef | ast.FunctionDef):
            names.setdefault(statement.name, statement)
        elif isinstance(statement, ast.ImportFrom):
            source = resolve_name("." * statement.level + (statement.module or ""), package)
            for alias in statement.names:
                names.setdefault(alias.asname or alias.name, Import(source, alias.name))
        elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            names.setdefault(statement.targets[0].id, statement.value)
    lazy = names.get("_HOMES")  # our packages load their public names on first use
    if isinstance(lazy, ast.Dict):
        for name, home in ast.literal_eval(lazy).items():
            names.setdefault(name, Import(home, name))
    return names


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Top-level statements, those under `if` and `try` included."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try):
            yield from _statements([*statement.body, *statement.orelse])
        if isinstance(statement, ast.Try):
            yield from _statements(inner for handler in statement.handlers for inner in handler.body)


def _file(module: str) -> Path | None:
    top, *rest = module.split(".")
    spec = find_spec(top)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        base = Path(folder, *rest)
        for file in (base / "__init__.py", base.with_suffix(".py")):
            if file.is_file():
                return file
    return None
