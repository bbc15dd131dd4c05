"""The rule table: one rule per operation; an operation without a rule is a refusal.

A rule sees one node, of which at least one operand carries tokens, and a `Flow` that answers what
it may ask. It returns the node's `Step` or raises `CannotRewrite`. The same rules serve two
questions: what a merge does downstream (layouts with merged segments), and, read backwards, where
a token axis comes from (layouts without).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import fx

from toma_fx.errors import CannotRewrite
from toma_fx.passes.graph.nodes import is_getitem, op_name, schema_name
from toma_fx.passes.layouts.layout import Segment, Step, TokenLayout


class Flow(Protocol):
    """What a rule may ask about the operands of its node."""

    def layout(self, node: object) -> TokenLayout | None:
        """The layout of an operand; None if it is at full length or no tensor."""

    def results(self, node: fx.Node) -> tuple[TokenLayout | None, ...]:
        """The layouts of an operand with several results."""

    def is_table(self, node: fx.Node, *, constant: bool) -> bool:
        """Whether an operand depends on no activation (with `constant`: on no input at all)."""

    def is_mask(self, node: fx.Node) -> bool:
        """Whether an operand may say which tokens attend: nothing learned lies behind it."""

    def is_residual(self, node: fx.Node, axis: int, segments: tuple[Segment, ...]) -> bool:
        """Whether an operand is the full-length stream of these segments of the region."""


Rule = Callable[[fx.Node, Flow], Step]
_RULES: dict[Any, Rule] = {}


def layout_rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Register a rule for operations, or names of schemas; a second for one is a mistake."""

    def register(rule: Rule) -> Rule:
        for target in targets:
            if target in _RULES:
                raise ValueError(f"{target} has a layout rule already")
            _RULES[target] = rule
        return rule

    return register


def find_rule(node: fx.Node) -> Rule:
    """The rule of a node's operation.

    Raises:
        CannotRewrite: there is none; the message names the operation.
    """
    if node.op == "output":
        raise CannotRewrite("the graph's output reads a merged tensor at full length", node)
    if is_getitem(node):
        return _getitem
    rule = _RULES.get(node.target) or _RULES.get(schema_name(node))
    if rule is not None:
        return rule
    tags = getattr(node.target, "tags", ())
    if torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags:
        return _RULES[torch.Tag.pointwise]
    raise CannotRewrite(f"no layout rule for {op_name(node)}", node)


def apply_rule(node: fx.Node, flow: Flow) -> Step:
    """What the rule of a node's operation says of it.

    Raises:
        CannotRewrite: there is no rule, it refuses, or it met arguments that it does not know:
            a compile must not break where the plain model runs.
    """
    rule = find_rule(node)
    try:
        return rule(node, flow)
    except CannotRewrite:
        raise
    except Exception as error:
        reason = f"the rule of {op_name(node)} failed: {type(error).__name__}: {error}"
        raise CannotRewrite(reason, node) from error


def supported_operations() -> list[str]:
    """The operations with a rule of their own, for documentation and tests."""
    return sorted(str(target) for target in _RULES)


def _getitem(node: fx.Node, flow: Flow) -> Step:
    source, index = node.args
    return Step(flow.results(source)[index])
