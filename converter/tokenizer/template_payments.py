"""Adds payments to a parsed chat template: calls of filters that template_sandbox.py defines."""

from __future__ import annotations

from typing import Any, cast

from jinja2 import nodes
from jinja2.nodes import Node
from jinja2.visitor import NodeTransformer

from tritgguf.converter.tokenizer.template_budget import CHARACTERS_PER_UNIT

# Names of filters that no template can write.
STEP, KEEP, ITERATE, CONCAT, COMPARE = "$step", "$keep", "$iterate", "$concat", "$compare"


class Payments(NodeTransformer):
    """Adds to a parsed template what pays for loops, calls of macros, lists and joined texts."""

    def _paying(self, node: Any) -> Any:  # noqa: ANN401 (nodes that have a body)
        self.generic_visit(node)
        n_nodes = sum(1 for child in node.body for _ in child.find_all(Node))
        n_characters = sum(len(text.data) for text in node.find_all(nodes.TemplateData))
        units = nodes.Const(1 + n_nodes + n_characters // CHARACTERS_PER_UNIT)
        node.body.insert(0, nodes.ExprStmt(_filter(STEP, units)).set_lineno(node.lineno))
        return node

    visit_Macro = visit_CallBlock = visit_Block = _paying  # noqa: N815 (names that jinja2 looks for)

    def visit_For(self, node: nodes.For) -> Node:  # noqa: N802
        self._paying(node)
        node.iter = _filter(ITERATE, cast("nodes.Expr", node.iter))
        return node

    def visit_List(self, node: Any) -> Any:  # noqa: ANN401, N802
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else _filter(KEEP, node)

    visit_Tuple = visit_Dict = visit_List  # noqa: N815

    def visit_Getitem(self, node: nodes.Getitem) -> Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(KEEP, node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> Node:  # noqa: N802
        self.generic_visit(node)
        compared: list[nodes.Compare | nodes.Operand] = [node, *node.ops]
        for place in compared:
            if not isinstance(place.expr, nodes.Const):
                place.expr = _filter(COMPARE, place.expr)
        return node

    def visit_Concat(self, node: nodes.Concat) -> Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(CONCAT, nodes.Tuple(node.nodes, "load"))

    def visit_Assign(self, node: nodes.Assign) -> Node:  # noqa: N802
        self.generic_visit(node)
        if any(True for _ in nodes.Tuple([node.target], "store").find_all(nodes.NSRef)):
            node.node = _filter(KEEP, nodes.List([node.node]), first=True)
        return node


def _filter(name: str, value: nodes.Expr, *, first: bool = False) -> nodes.Filter:
    arguments: list[nodes.Expr] = [nodes.Const(True)] if first else []
    filtered = nodes.Filter(value, name, arguments, [], None, None)
    filtered.set_lineno(value.lineno)
    return filtered
