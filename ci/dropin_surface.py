"""Print what a package offers, as JSON, without importing it: run with the folder of its source.

    python ci/dropin_surface.py .venvs/gem-llm/lib/python3.11/site-packages/gem

A module's names are those that it defines, imports excepted; a class's are its methods, its attributes, and what its
methods set on ``self``. Loggers, type variables, and what a function declares ``global`` are no offer.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

Function = ast.FunctionDef | ast.AsyncFunctionDef


def main() -> None:
    root = Path(sys.argv[1])
    names: dict[str, list[str] | None] = {}
    for path in sorted(root.rglob("*.py")):
        module = ".".join((root.name, *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
        if module.rpartition(".")[2].startswith("_"):
            continue
        names[module] = None
        names |= {
            f"{module}:{name}": parameters for name, parameters in _of_module(ast.parse(path.read_text())).items()
        }
    print(json.dumps(names))


def _of_module(tree: ast.Module) -> dict[str, list[str] | None]:
    """Return the names of a module, each with the parameters of a function and None for others."""
    names: dict[str, list[str] | None] = {}
    for node in tree.body:
        if isinstance(node, Function):
            names[node.name] = _parameters(node)
        elif isinstance(node, ast.ClassDef):
            names |= _of_class(node)
        else:
            names |= dict.fromkeys(_assigned(node))
    private = {name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names} | {"logger"}
    return {name: each for name, each in names.items() if _is_public(name) and name not in private}


def _of_class(node: ast.ClassDef) -> dict[str, list[str] | None]:
    names: dict[str, list[str] | None] = {}
    attributes: set[str] = set()
    constructor: list[str] | None = None
    for member in node.body:
        if not isinstance(member, Function):
            attributes |= set(_assigned(member))
            continue
        if member.name == "__init__":
            constructor = _parameters(member)[1:]
        elif _is_public(member.name):
            decorators = [ast.unparse(each) for each in member.decorator_list]
            given = _parameters(member)[0 if "staticmethod" in decorators else 1 :]
            names[f"{node.name}.{member.name}"] = None if "property" in decorators else given
        attributes |= {
            each.attr
            for each in ast.walk(member)
            if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store) and ast.unparse(each.value) == "self"
        }
    found = {f"{node.name}.{name}": None for name in sorted(attributes) if _is_public(name)}
    return {node.name: constructor, **found, **names}


def _assigned(node: ast.stmt) -> list[str]:
    """Return the names that a statement assigns; none for a type variable."""
    if isinstance(node, ast.AnnAssign):
        return [node.target.id] if isinstance(node.target, ast.Name) else []
    if not isinstance(node, ast.Assign) or (isinstance(node.value, ast.Call) and "TypeVar" in ast.unparse(node.value)):
        return []
    return [target.id for target in node.targets if isinstance(target, ast.Name)]


def _parameters(node: Any) -> list[str]:
    """Return the names of a function's parameters, in order; those that take any number are left out."""
    return [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]


def _is_public(name: str) -> bool:
    return not name.rpartition(".")[2].startswith("_")


if __name__ == "__main__":
    main()
