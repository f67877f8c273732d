"""Which version of the code a result comes from: a digest of the sources that it can depend on, and no others.

A part's evidence depends on its function, on what that names in its file, and on the modules of this package that those
import, and so on down. It does not depend on the claim's thresholds, its judge or its pictures, so these may change
without a run being lost; nor on docstrings, comments and layout. Not seen: modules imported by a computed name.
"""

import ast
import importlib.util
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

from ..exact import digest
from ..trajectory.environment import package_version

_OURS = __name__.split(".")[0]
_NOT = (f"{__package__}.record", f"{_OURS}.live")  # types and progress: no number depends on them


def version(function: Callable[..., Any], module: str) -> str:
    """The package's version and a digest of the sources that a part's results depend on.

    Args:
        function: the part's.
        module: the claim's; all of it counts if the function is not one of a module (a lambda, one made by a call).
    """
    return f"{package_version()}+{digest(_sources(function, module), 8)}"


def _sources(function: Callable[..., Any], module: str) -> Iterator[str]:
    plain = isinstance(function, FunctionType) and function.__qualname__.isidentifier()
    home = function.__module__ if plain else module
    roots = {_OURS, home.split(".")[0]}
    body = _tree(home).body
    nodes = _reached(body, function.__name__) if plain else body
    yield from (ast.dump(node) for node in nodes)
    seen, todo = {home}, deque(_imported(nodes, home, roots))
    modules = {}
    while todo:
        module = todo.popleft()
        if module not in seen and not f"{module}.".startswith(tuple(f"{name}." for name in _NOT)):
            seen.add(module)
            modules[module], names = _whole(module, frozenset(roots))
            todo.extend(names)
    for module in sorted(modules):
        yield module
        yield modules[module]


@cache
def _tree(module: str) -> ast.Module:
    """The source of a module without docstrings; comments and layout are gone, too."""
    tree = ast.parse(Path(importlib.util.find_spec(module).origin).read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [x for x in body if not (isinstance(x, ast.Expr) and isinstance(x.value, ast.Constant))]
    return tree


@cache
def _whole(module: str, roots: frozenset[str]) -> tuple[str, tuple[str, ...]]:
    tree = _tree(module)
    return digest([ast.dump(tree)], 8), tuple(_imported([tree], module, roots))


def _reached(body: list[ast.stmt], name: str) -> list[ast.stmt]:
    """Statements of a module that a name depends on, in their order; those that define nothing are always in."""
    by_name: dict[str, list[ast.stmt]] = {}
    reached, todo = set(), deque([name])
    for statement in body:
        names = list(_defined(statement))
        for defined in names:
            by_name.setdefault(defined, []).append(statement)
        if not names:
            reached.add(statement)
            todo.extend(_named(statement))
    done = set()
    while todo:
        wanted = todo.popleft()
        if wanted not in done:
            done.add(wanted)
            for statement in by_name.get(wanted, ()):
                reached.add(statement)
                todo.extend(_named(statement))
    return [statement for statement in body if statement in reached]


def _defined(statement: ast.stmt) -> Iterator[str]:
    if getattr(statement, "decorator_list", None):
        return  # a decorator may note it somewhere
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        yield statement.name
    elif isinstance(statement, ast.Import | ast.ImportFrom):
        yield from ((alias.asname or alias.name).split(".")[0] for alias in statement.names)
    elif isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        names = [x for target in targets for x in ast.walk(target) if isinstance(x, ast.Name | ast.Attribute)]
        if all(isinstance(x, ast.Name) for x in names):  # x.y = ... changes something elsewhere
            yield from (x.id for x in names)


def _named(node: ast.AST) -> Iterator[str]:
    return (x.id for x in ast.walk(node) if isinstance(x, ast.Name))


def _imported(nodes: Iterable[ast.AST], module: str, roots: Iterable[str]) -> Iterator[str]:
    """Modules of ours that are imported in these nodes, wherever in them."""
    is_package = importlib.util.find_spec(module).submodule_search_locations is not None
    package = module if is_package else module.rpartition(".")[0]
    for node in (x for top in nodes for x in ast.walk(top)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in roots)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.rsplit(".", node.level - 1)[0]
                base = f"{above}.{base}".rstrip(".")
            if base.split(".")[0] in roots:
                for alias in node.names:
                    inner = f"{base}.{alias.name}"
                    yield inner if _is_module(inner) else base


@cache
def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
