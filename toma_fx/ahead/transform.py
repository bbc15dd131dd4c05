"""Exported program in, exported program out: the passes and the lowering in between.

Before: `torch.export`'s program of the plain model. After: the same signature, plans and guard as
buffers that the program changes, nothing but ATen, `cond` and `while_loop` on a CPU.

Why by way of a module: `program.module()` has parameters and buffers as attributes of its graph,
as the passes want them, and exporting the rewritten module again lets torch build the signature
of the new program (which buffers it changes) instead of doing so by hand.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo.source import LocalSource
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from toma_fx.ahead.lower import lower_plans
from toma_fx.backend import remember, rewrite
from toma_fx.config import TomaConfig
from toma_fx.errors import ExportError, TomaError

aten = torch.ops.aten


def transform(program: ExportedProgram, config: TomaConfig | None = None) -> ExportedProgram:
    """Put token merging into an exported program, for any compiler that takes one.

    On a CPU the result is plain ATen with `torch.cond` and `torch.while_loop`: it can be saved with
    `torch.export.save`, and loaded and lowered where toma_fx is not installed. On CUDA its plans
    are Triton kernels of `toma_fx::plan_kernels_`, which needs toma_fx until it is lowered.

    `toma_fx.last_report()` says what was merged. Costs the passes and a second export, seconds.

    Args:
        program: from `torch.export.export`, of a model in eval mode; not modified.
        config: defaults to `TomaConfig()`.

    Returns:
        A program with the same inputs and outputs, whose plans and guard are mutable buffers;
        `program` itself where nothing is merged, after one warning that says why.

    Raises:
        ExportError: a size is dynamic though something merges, or the result cannot be exported.
        ConfigError: no profile has the name `config.device`.
    """
    module = program.module(check_guards=False)
    flat = flattened(module)
    placeholders = flat.graph.find_nodes(op="placeholder")
    args, kwargs = program.example_inputs or _examples(program, placeholders)
    # Not the program's own fake inputs: reading a dynamic size of those would fix it for good.
    result = rewrite(flat, pytree.tree_leaves((args, kwargs)), config or TomaConfig())
    remember(result.report)
    merged = result.graph_module
    if merged is flat:
        return program
    _refuse_dynamic(placeholders)
    lower_plans(merged)
    restore_names(merged, module)
    merged.graph.set_codegen(module.graph._codegen)
    merged.recompile()
    return exported(merged, args, kwargs)


def exported(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any = None
) -> ExportedProgram:
    """`torch.export.export` for inference, with one kind of error.

    Raises:
        ExportError: the model cannot be traced as one graph.
    """
    try:
        with torch.no_grad():
            return torch.export.export(
                model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False
            )
    except TomaError:
        raise
    except Exception as error:
        raise ExportError(
            f"torch.export cannot trace {type(model).__name__} as one graph: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error


def first_line(error: BaseException) -> str:
    """Of a message; torch's run over pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no message"


def flattened(module: fx.GraphModule) -> fx.GraphModule:
    """A copy that takes and returns flat lists, without the checks that tracing left in it.

    Its inputs carry their names as Dynamo's do: by them a timestep is told from a guidance scale.
    """
    graph = copy.deepcopy(module.graph)
    graph.set_codegen(fx.graph.CodeGen())
    for node in list(graph.nodes):
        if node.op == "placeholder":
            node._dynamo_source = LocalSource(node.name, is_input=True)
        if node.target is aten._assert_tensor_metadata.default:
            graph.erase_node(node)
    return fx.GraphModule(module, graph)


def restore_names(gm: fx.GraphModule, source: fx.GraphModule) -> None:
    """Give the model's parameters and buffers their own names back, in place.

    Tracing calls them `_param_constant0` and so on. By their names, weights of a package can be
    looked up and exchanged.
    """
    state = [*source.named_parameters(remove_duplicate=False), *source.named_buffers()]
    names = {id(tensor): name for name, tensor in reversed(state)}
    stale = set()
    for node in gm.graph.find_nodes(op="get_attr"):
        tensor = getattr(gm, node.target, None)
        if id(tensor) in names and isinstance(tensor, Tensor):
            stale.add(node.target)
            node.target = names[id(tensor)]
            _assign(gm, node.target, tensor)
    for name in stale - set(names.values()):
        delattr(gm, name)


def _assign(root: nn.Module, path: str, tensor: Tensor) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = getattr(root, parent)
    if isinstance(tensor, nn.Parameter):
        root.register_parameter(name, tensor)
    else:
        root.register_buffer(name, tensor)


def _refuse_dynamic(placeholders: list[fx.Node]) -> None:
    for node in placeholders:
        value = node.meta["val"]
        for axis, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            if isinstance(size, torch.SymInt):
                raise ExportError(
                    f"axis {axis} of {node.name} is dynamic, but token merging has static sizes: "
                    "leave dynamic_shapes out and export one call for each size (also=)"
                )


def _examples(
    program: ExportedProgram, placeholders: list[fx.Node]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs of the right shapes, for a program that was saved without its own."""
    values = [_zeros(node.meta["val"]) for node in placeholders]
    args, kwargs = pytree.tree_unflatten(values, program.call_spec.in_spec)
    return args, kwargs


def _zeros(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.zeros([int(n) for n in value.shape], dtype=value.dtype, device=value.device)
