"""Run by a test in a process of its own, where toma_fx cannot be imported.

    plain_process.py PACKAGE CALLS PROGRAM RESULTS

Runs the calls by the package and by the saved program, as a graph and lowered anew; saves what they
return. Only what torch alone can do is written down as done.
"""

from __future__ import annotations

import sys
import tempfile

import torch

sys.modules["toma_fx"] = None  # type: ignore[assignment] - importing it now fails


def namespaces(program: torch.export.ExportedProgram) -> set[str]:
    """Of the operations in a program's graph and in the branches below it."""
    found = set()
    for module in program.graph_module.modules():
        nodes = module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ()
        for node in nodes:
            if node.op == "call_function":
                found.add(getattr(node.target, "namespace", "python"))
    return found


@torch.no_grad()
def main(package: str, calls_path: str, saved: str, results: str) -> None:
    torch.set_num_threads(1)
    calls = torch.load(calls_path)
    run = torch._inductor.aoti_load_package(package)
    found = {"package": [run(**call)["noise"] for call in calls]}
    program = torch.export.load(saved)
    found["namespaces"] = sorted(namespaces(program))
    module = program.module()
    found["graph"] = [module(**call)["noise"] for call in calls]
    with tempfile.TemporaryDirectory() as folder:
        options = {"aot_inductor.compile_wrapper_opt_level": "O0"}
        lowered = torch._inductor.aoti_compile_and_package(
            torch.export.load(saved), package_path=f"{folder}/again.pt2", inductor_configs=options
        )
        again = torch._inductor.aoti_load_package(lowered)
        found["lowered"] = [again(**call)["noise"] for call in calls]
    found["toma_fx"] = [name for name in sys.modules if name.startswith("toma_fx.")]
    torch.save(found, results)


if __name__ == "__main__":
    main(*sys.argv[1:])
