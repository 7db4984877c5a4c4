"""Declarations of an objective or backbone: its options, sizes, recipes and placement.

For plug-ins of this package they are read from the source without importing the file, so that a wrong option is
refused before PyTorch is loaded, which takes seconds. Plug-ins that are loaded already, and those of other packages,
are inspected.
"""

import ast
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from workbench import plugins

# Optional names in an objective's file, beside its class, and their defaults.
_TABLES: Mapping[str, Any] = {"RECIPES": {}, "PLACEMENT": {None: {}}, "deciding": dict}
_ROOT = Path(__file__).parents[1]


class Size(NamedTuple):
    """Depth, width and heads of a transformer."""

    depth: int
    width: int
    heads: int


@dataclass(frozen=True)
class Declared:
    """Declarations of a plug-in.

    ``options`` are the keyword arguments of the constructor that the run does not supply, with type and default.
    ``sizes`` are a backbone's sizes by name. ``recipes`` and ``placement`` are tables in an objective's file, and
    ``deciding`` its function that removes options which have no effect on training. ``compares_samples`` says whether
    the loss of a sample depends on the others in its micro-batch.
    """

    options: Mapping[str, inspect.Parameter]
    sizes: Mapping[str, Size]
    recipes: Mapping[str, Mapping[str, Any]]
    placement: Mapping[Any, Mapping[str, Any]]
    deciding: Callable[[Mapping[str, Any]], dict[str, Any]]
    compares_samples: bool


def declared(kind: str, name: str) -> Declared:
    """Declarations of the plug-in ``name`` of a kind ("objective", "backbone").

    Raises PluginError as `plugins.load` does, and ValueError if the annotations of an imported plug-in cannot be
    evaluated.
    """
    module = plugins.own_module(kind, name)
    if module and module not in sys.modules:
        return _read(kind, module)
    found = plugins.load(kind, name)
    try:
        return _imported(found)
    except Exception as error:
        raise ValueError(f"the options of {kind} {name!r} cannot be read: {error}") from error


def arguments(module: str, name: str, unread: Sequence[str] = ()) -> dict[str, Any]:
    """Keyword arguments of the call that gives ``name`` its value in a module of the package, read from its source.

    Those that are ``unread`` are given as text. ValueError if the module does not define it by such a call.
    """
    of = _module(module)
    call = getattr(of.statements.get(name), "value", None)
    if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
        raise ValueError(f"{module} must give {name} its value by a call with keyword arguments alone")
    values = {keyword.arg or "": keyword.value for keyword in call.keywords}
    return {key: ast.unparse(value) if key in unread else of.value(value) for key, value in values.items()}


@cache
def _read(kind: str, module: str) -> Declared:
    """Read declarations from the source of a module of this package."""
    source, exported = _module(module), plugins.KINDS[kind].exports
    chain = list(_bases(source, exported))
    home = chain[0][0]

    def attribute(name: str, default: Any) -> Any:
        values = ((module, _assigned(node.body, name)) for module, node in chain)
        return next((module.value(value) for module, value in values if value is not None), default)

    supplied = attribute("SUPPLIED", ())
    constructors = ((m, method) for m, node in chain for method in node.body if _is_constructor(method))
    owner, constructor = next(constructors, (home, None))

    def evaluate(node: ast.expr | None) -> Any:
        return inspect.Parameter.empty if node is None else owner.value(node)

    options: dict[str, inspect.Parameter] = {}
    if constructor is not None:
        for argument, default in zip(constructor.args.kwonlyargs, constructor.args.kw_defaults, strict=True):
            if argument.arg not in supplied:
                options[argument.arg] = inspect.Parameter(
                    argument.arg,
                    inspect.Parameter.KEYWORD_ONLY,
                    annotation=evaluate(argument.annotation),
                    default=evaluate(default),
                )
    tables = {name.lower(): home.named(name, default) for name, default in _TABLES.items()}
    return Declared(options, attribute("sizes", {}), compares_samples=attribute("compares_samples", False), **tables)


@cache
def _imported(cls: Any) -> Declared:
    """Inspect a class and its module; annotations may be strings."""
    module = inspect.getmodule(cls)
    parameters: Sequence[inspect.Parameter] = list(inspect.signature(cls, eval_str=True).parameters.values())
    options = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in cls.SUPPLIED}
    tables = {table.lower(): getattr(module, table, default) for table, default in _TABLES.items()}
    compares_samples = getattr(cls, "compares_samples", False)
    return Declared(options, getattr(cls, "sizes", {}), compares_samples=compares_samples, **tables)


class _Module:
    """A module of this package, of which only the statements that a value depends on are executed."""

    def __init__(self, name: str):
        self._namespace: dict[str, Any] = {"__name__": name}
        file = _ROOT.joinpath(*name.split(".")[1:]).with_suffix(".py")
        self.statements: dict[str, ast.stmt] = {}
        for statement in ast.parse(file.read_text(encoding="utf-8"), str(file)).body:
            self.statements |= dict.fromkeys(_bound(statement), statement)

    def value(self, expression: ast.expr) -> Any:
        """Evaluate an expression in the module's namespace."""
        self._run_dependencies(expression)
        return eval(compile(ast.Expression(expression), self._namespace["__name__"], "eval"), self._namespace)

    def named(self, name: str, default: Any) -> Any:
        """Value of a module-level name, or ``default`` if it is not defined."""
        return self.value(ast.parse(name, mode="eval").body) if name in self.statements else default

    def _run_dependencies(self, node: ast.AST) -> None:
        loaded = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        for name in sorted(loaded & self.statements.keys() - self._namespace.keys()):
            statement = self.statements[name]
            self._run_dependencies(statement)
            exec(compile(ast.Module([statement], []), self._namespace["__name__"], "exec"), self._namespace)


@cache
def _module(name: str) -> _Module:
    return _Module(name)


def _bound(statement: ast.stmt) -> list[str]:
    """Names that a statement binds."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name.partition(".")[0] for alias in statement.names]
    if isinstance(statement, ast.ClassDef | ast.FunctionDef):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _bases(module: _Module, name: str) -> Iterator[tuple[_Module, ast.ClassDef]]:
    """A class and its base classes, each with its module, as far as they are defined in this package."""
    statement = module.statements[name]
    if isinstance(statement, ast.ImportFrom):
        original = next(alias.name for alias in statement.names if name in (alias.asname, alias.name))
        if statement.module and statement.module.startswith("workbench."):
            yield from _bases(_module(statement.module), original)
    elif isinstance(statement, ast.ClassDef):
        yield module, statement
        for base in statement.bases:
            if isinstance(base, ast.Name) and base.id in module.statements:
                yield from _bases(module, base.id)
            elif isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name):
                package = module.statements[base.value.id]
                if isinstance(package, ast.ImportFrom) and (package.module or "").startswith("workbench."):
                    yield from _bases(_module(f"{package.module}.{base.value.id}"), base.attr)


def _assigned(body: Sequence[ast.stmt], name: str) -> ast.expr | None:
    """The expression assigned to a name in a class body, or None."""
    for statement in body:
        if name in _bound(statement):
            return statement.value  # type: ignore[attr-defined]
    return None


def _is_constructor(statement: ast.stmt) -> TypeGuard[ast.FunctionDef]:
    return isinstance(statement, ast.FunctionDef) and statement.name == "__init__"
