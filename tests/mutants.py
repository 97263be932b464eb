"""The mutants of a module: its source with one small fault each, as the people who change it would make one.

Faults are made in functions alone: dropped statements and conditions, turned comparisons, numbers off by one. Texts of
messages, annotations, and the values of limits stay: no behaviour hangs on their exact words and digits.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import attrs

_PAIRS: tuple[tuple[type[ast.cmpop], type[ast.cmpop]], ...] = (
    *((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq)),
    *((ast.Is, ast.IsNot), (ast.In, ast.NotIn)),
)
_TURNED = {**dict(_PAIRS), **{second: first for first, second in _PAIRS}}
_ORDERING = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_NO_BEHAVIOUR = {"annotation", "returns", "decorator_list", "args", "exc"}  # `exc`: what a raise says
_SHOWN = 110  # characters of code in a mutant's name


@attrs.frozen
class Mutant:
    """One fault. `name` says where and what, without a line number, so that it outlives changes elsewhere."""

    file: str
    function: str  # the outermost one around it
    line: int
    name: str


def mutants_of(root: Path, file: str) -> Iterator[Mutant]:
    """Every mutant of a module, in the order of its lines."""
    return (mutant for mutant, _ in _each(root, file))


def code_of(root: Path, mutant: Mutant) -> CodeType:
    """The module, compiled with the fault."""
    return next(compiled() for other, compiled in _each(root, mutant.file) if other.name == mutant.name)


def _each(root: Path, file: str) -> Iterator[tuple[Mutant, Callable[[], CodeType]]]:
    tree = ast.parse((root / file).read_text())
    names: Counter[str] = Counter()
    for function, line, before, (what, after), put in _edits(tree, "", inside=False):
        name = f"{file} {function}: {what}"
        names[name] += 1
        numbered = f"{name} #{names[name]}" if names[name] > 1 else name

        def compiled(before: ast.AST = before, after: ast.AST = after, put: _Put = put) -> CodeType:
            put(ast.copy_location(after, before))
            code = compile(ast.fix_missing_locations(tree), str(root / file), "exec")
            put(before)
            return code

        yield Mutant(file, function, line, numbered), compiled


_Put = Callable[[ast.AST], None]
_Fault = tuple[str, ast.AST]
_Edit = tuple[str, int, ast.AST, _Fault, _Put]


def _edits(node: ast.AST, scope: str, *, inside: bool) -> Iterator[_Edit]:
    for field, value in ast.iter_fields(node):
        if field in _NO_BEHAVIOUR and not (isinstance(node, ast.Call) and field == "args"):
            continue
        children = enumerate(value) if isinstance(value, list) else [(None, value)]
        for index, child in list(children):
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr):
                put = _putter(node, field, index)
                if inside:
                    line = getattr(child, "lineno", 0)
                    yield from ((scope, line, child, fault, put) for fault in _faults(node, field, child))
                yield from _below(child, scope, inside=inside)


def _below(child: ast.AST, scope: str, *, inside: bool) -> Iterator[_Edit]:
    if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
        return
    named = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not inside
    below = f"{scope}.{child.name}".lstrip(".") if named else scope
    yield from _edits(child, below, inside=inside or isinstance(child, _FUNCTIONS))


def _putter(parent: ast.AST, field: str, index: int | None) -> _Put:
    def put(node: ast.AST) -> None:
        if index is None:
            setattr(parent, field, node)
        else:
            getattr(parent, field)[index] = node

    return put


def _faults(parent: ast.AST, field: str, node: ast.AST) -> Iterator[_Fault]:
    """What may stand where *node* stands, and what to call it."""
    if _may_be_dropped(node):
        # There, though it never runs: the function keeps its variables, and takes the mutated code where it is.
        yield f"without `{_code(node)}`", ast.If(ast.Constant(False), [node], [])
    if isinstance(node, ast.BoolOp):
        for number, gone in enumerate(node.values):
            rest = node.values[:number] + node.values[number + 1 :]
            yield f"without `{_code(gone)}` in `{_code(node)}`", ast.BoolOp(node.op, rest) if len(rest) > 1 else rest[0]
    if field in {"test", "ifs"} and _is_negated_here(node):
        yield _turned(node, ast.UnaryOp(ast.Not(), node))
    match node:
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield _turned(node, operand)
        case ast.Compare(left=left, ops=[op], comparators=comparators):
            yield _turned(node, ast.Compare(left, [_TURNED[type(op)]()], comparators))
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() as op, right=right):
            yield _turned(node, ast.BinOp(left, ast.Sub() if isinstance(op, ast.Add) else ast.Add(), right))
        case ast.Constant(value=bool() as said):
            yield _turned(node, ast.Constant(not said))
        case ast.Constant(value=int() as said) if not isinstance(parent, ast.MatchValue):
            yield _turned(node, ast.Constant(said + 1))


def _turned(node: ast.AST, after: ast.AST) -> _Fault:
    return f"`{_code(node)}` -> `{_code(after)}`", after


def _may_be_dropped(node: ast.AST) -> bool:
    match node:
        case ast.Expr(value=ast.Constant()):  # a docstring
            return False
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="log")))):
            return False
        case ast.Expr(value=ast.Call(func=ast.Name(id="assert_never"))):  # which the type checker answers for
            return False
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            return True
        case ast.Return(value=None | ast.Constant(value=None)):  # most stand at the end, where nothing says the same
            return False
        case _:
            return isinstance(
                node, ast.Expr | ast.Return | ast.Raise | ast.AugAssign | ast.Delete | ast.Continue | ast.Break
            )


def _is_negated_here(node: ast.AST) -> bool:
    """Not what is turned by itself anyway."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return isinstance(node.ops[0], _ORDERING)
    return not (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not))


def _code(node: Any) -> str:
    text = " ".join(ast.unparse(ast.fix_missing_locations(node)).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
