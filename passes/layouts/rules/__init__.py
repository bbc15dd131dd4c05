"""Layout rules, one per operation. Importing this package fills the table."""

from toma_fx.passes.layouts.rules import (
    attention,
    contraction,
    exchanges,
    joins,
    pointwise,
    shapes,
    writes,
)
from toma_fx.passes.layouts.rules.table import (
    Flow,
    apply_rule,
    find_rule,
    layout_rule,
    supported_operations,
)

__all__ = [
    "Flow",
    "apply_rule",
    "attention",
    "contraction",
    "exchanges",
    "find_rule",
    "joins",
    "layout_rule",
    "pointwise",
    "shapes",
    "supported_operations",
    "writes",
]
