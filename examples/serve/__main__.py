"""`python -m examples.serve`: a server on this machine, until Ctrl-C.

    python -m examples.serve --sizes 64x64 64x48
    python -m examples.serve --model FOLDER --sizes 1024x1024 832x1216 --set skip_blocks=5

    curl -d '{"prompt": "red apple", "seed": 1, "size": "64x48"}' \\
        http://127.0.0.1:8000/pictures -o apple.png
"""

from __future__ import annotations

import argparse
import ast
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.serve.settings import Settings, Size
from toma_fx.errors import ConfigError, MissingPackageError, TomaError

HOST = "127.0.0.1"


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    try:
        url = start(settings_of(given), given.port)
    except TomaError as error:
        print(f"examples.serve: {error}", file=sys.stderr)
        return 1
    print(f"{url}/pictures paints, {url}/status says how it is; Ctrl-C ends it")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        stop()
    return 0


def start(settings: Settings, port: int, cpus: int | None = None) -> str:
    """Start Ray on this machine where it does not run yet, and the server; returns its address.

    Args:
        settings: of the server.
        port: on this machine alone.
        cpus: of a Ray that starts; None counts them.

    Raises:
        MissingPackageError: Ray Serve is not installed.
    """
    try:
        import ray
        from ray import serve
    except ImportError:
        raise MissingPackageError("the server", "ray[serve]", "serve") from None
    from examples.serve.server import application

    if not ray.is_initialized():
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": HOST, "port": port})
    gpus = int(ray.cluster_resources().get("GPU", 0))
    serve.run(application(settings, gpus), name="pictures")
    return f"http://{HOST}:{port}"


def stop() -> None:
    """End the server, and the Ray that `start` started."""
    import ray
    from ray import serve

    serve.shutdown()
    ray.shutdown()


def parser() -> argparse.ArgumentParser:
    """Every field of `Settings`; `load` and `package` take them too."""
    found = argparse.ArgumentParser("python -m examples.serve")
    add, usual = found.add_argument, Settings()
    add("--model", default=usual.model, help="emoji-sdxl, emoji-flux, or a pipeline's folder")
    add("--sizes", nargs="+", default=[str(s) for s in usual.sizes], metavar="WIDTHxHEIGHT")
    add("--steps", type=int, default=usual.steps, help="of a request that names none")
    add("--most-steps", type=int, default=usual.most_steps, help="that a request may name")
    add("--lanes", type=int, default=usual.lanes, help="requests that a replica paints at once")
    add("--queued", type=int, default=usual.queued, help="requests that may wait")
    add("--replicas", type=int, help="default: one for each GPU, or one")
    add("--package", type=Path, help="a .pt2 of examples.serve.package; else it is compiled")
    add("--set", nargs="+", default=[], metavar="NAME=VALUE", help="of TokenMergingConfig")
    add("--backend", default=usual.backend, help="eager starts at once and paints slowly")
    add("--dtype", default=usual.dtype, help="of a pipeline's weights")
    add("--threads", type=int, default=usual.threads, help="of a replica on a CPU")
    add("--port", type=int, default=8000)
    return found


def settings_of(given: argparse.Namespace) -> Settings:
    """
    Raises:
        ConfigError: a value is not usable.
    """
    named = {name: getattr(given, name) for name in Settings.__dataclass_fields__ if name in given}
    sizes = tuple(Size.read(text) for text in given.sizes)
    return Settings(**{**named, "sizes": sizes, "merging": dict(map(_pair, given.set))})


def _pair(text: str) -> tuple[str, Any]:
    """Numbers, tuples and None as Python writes them; anything else is a word."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set takes NAME=VALUE, not {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


if __name__ == "__main__":
    sys.exit(main())
