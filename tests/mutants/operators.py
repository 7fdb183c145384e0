"""Small wrong edits of a file, made by rule: those that a person could type and a reviewer could overlook."""

import ast
from collections.abc import Iterator

Edit = tuple[int, int, str]
"""Offsets of the first character and behind the last, and the text that replaces them."""

_COMPARISONS = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
_ARITHMETIC = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "/", ast.Mod: "//", ast.Pow: "*",
    ast.BitAnd: "|", ast.BitOr: "&",
}  # fmt: skip
_SWAPPED = (
    ("min", "max"),
    ("sum", "mean"),
    ("any", "all"),
    ("ceil", "floor"),
    ("cos", "sin"),
    ("zeros_like", "ones_like"),
)
_NAMES = {old: new for one, other in _SWAPPED for old, new in ((one, other), (other, one))}
_DROPPED = {"detach", "float", "double", "clone", "cpu", "copy", "contiguous", "strip", "lower", "abs", "resolve"}


def edits(text: str) -> list[Edit]:
    """Every edit of a module's text that the rules make, each still Python."""
    lines = [0]
    for line in text.encode().splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    raw = text.encode()

    def at(line: int, column: int) -> int:
        return len(raw[: lines[line - 1] + column].decode())

    return sorted({edit for edit in _Walk(text, at).walk(ast.parse(text)) if _parses(text, edit)})


def _parses(text: str, edit: Edit) -> bool:
    start, end, new = edit
    if text[start:end] == new:
        return False
    try:
        ast.parse(text[:start] + new + text[end:])
    except SyntaxError:
        return False
    return True


class _Walk:
    def __init__(self, text: str, at) -> None:
        self.text, self.at = text, at

    def start(self, node: ast.AST) -> int:
        return self.at(node.lineno, node.col_offset)

    def end(self, node: ast.AST) -> int:
        return self.at(node.end_lineno, node.end_col_offset)

    def source(self, node: ast.AST) -> str:
        return self.text[self.start(node) : self.end(node)]

    def whole(self, node: ast.AST, new: str) -> Edit:
        return self.start(node), self.end(node), new

    def between(self, left: ast.AST, right: ast.AST, old: str, new: str) -> Edit:
        """An operator between two operands."""
        start, end = self.end(left), self.start(right)
        gap = self.text[start:end]
        return start, end, gap.replace(old, new, 1)

    def walk(self, node: ast.AST) -> Iterator[Edit]:
        yield from self.edits_of(node)
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "bases"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not _is_idle(child):
                    yield from self.walk(child)

    def edits_of(self, node: ast.AST) -> Iterator[Edit]:
        make = getattr(self, f"on_{type(node).__name__}", None)
        if make is not None:
            yield from make(node)

    def on_Compare(self, node: ast.Compare) -> Iterator[Edit]:
        sides = [node.left, *node.comparators]
        for left, operator, right in zip(sides, node.ops, sides[1:], strict=False):
            new = _COMPARISONS[type(operator)]
            gap = self.text[self.end(left) : self.start(right)]
            yield self.between(left, right, gap.strip("() \n"), new)

    def on_BoolOp(self, node: ast.BoolOp) -> Iterator[Edit]:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            yield self.between(left, right, old, new)
        for value in node.values:  # one of the conditions forgotten
            yield self.whole(value, "True" if old == "and" else "False")

    def on_BinOp(self, node: ast.BinOp) -> Iterator[Edit]:
        new = _ARITHMETIC.get(type(node.op))
        if new is not None and not isinstance(node.left, ast.JoinedStr | ast.Dict):
            gap = self.text[self.end(node.left) : self.start(node.right)]
            yield self.between(node.left, node.right, gap.strip("() \n"), new)

    def on_UnaryOp(self, node: ast.UnaryOp) -> Iterator[Edit]:
        if isinstance(node.op, ast.USub | ast.Not | ast.Invert):
            yield self.whole(node, f"({self.source(node.operand)})")

    def on_Constant(self, node: ast.Constant) -> Iterator[Edit]:
        value = node.value
        if isinstance(value, bool):
            yield self.whole(node, str(not value))
        elif isinstance(value, int):
            yield self.whole(node, str(value + 1))
            if value > 1:
                yield self.whole(node, str(value - 1))
        elif isinstance(value, float):
            yield self.whole(node, repr(value * 1.5 + (value == 0)))

    def on_Call(self, node: ast.Call) -> Iterator[Edit]:
        name = node.func
        if isinstance(name, ast.Name) and name.id in _NAMES and name.id not in ("sum", "mean"):
            yield self.whole(name, _NAMES[name.id])
        if isinstance(name, ast.Attribute):
            end = self.end(name)
            if name.attr in _NAMES:
                yield end - len(name.attr), end, _NAMES[name.attr]
            if name.attr in _DROPPED and not node.args:
                yield self.whole(node, self.source(name.value))
        for keyword in node.keywords:  # a default instead of what is given
            start, end = self.start(keyword), self.end(keyword)
            after = len(self.text[end:]) - len(self.text[end:].lstrip(", \n"))
            yield start, end + (after if self.text[end : end + 1] == "," else 0), ""
        for first, second in zip(node.args, node.args[1:], strict=False):
            if not {type(first), type(second)} & {ast.Starred, ast.GeneratorExp, ast.Constant}:
                between = self.text[self.end(first) : self.start(second)]
                yield self.start(first), self.end(second), self.source(second) + between + self.source(first)

    def on_Slice(self, node: ast.Slice) -> Iterator[Edit]:
        for bound in (node.lower, node.upper):
            if bound is not None and not isinstance(bound, ast.Constant):
                yield self.whole(bound, f"{self.source(bound)} + 1")
                yield self.whole(bound, "")

    def on_If(self, node: ast.If) -> Iterator[Edit]:
        yield self.whole(node.test, f"not ({self.source(node.test)})")

    on_IfExp = on_While = on_If

    def on_comprehension(self, node: ast.comprehension) -> Iterator[Edit]:
        for test in node.ifs:
            yield self.whole(test, "True")

    def on_Expr(self, node: ast.Expr) -> Iterator[Edit]:
        if isinstance(node.value, ast.Call):
            yield self.whole(node, "pass")

    def on_AugAssign(self, node: ast.AugAssign) -> Iterator[Edit]:
        yield self.whole(node, "pass")

    on_Raise = on_AugAssign

    def on_Assign(self, node: ast.Assign) -> Iterator[Edit]:
        if isinstance(node.targets[0], ast.Attribute | ast.Subscript):
            yield self.whole(node, "pass")


def _is_idle(node: ast.AST) -> bool:
    """A docstring, an f-string's text, an import: no edit of these is a fault of the code."""
    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return text or isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom | ast.Assert)
