"""Which regions the configuration leaves out, whatever they would gain."""

from __future__ import annotations

from fnmatch import fnmatch

from toma_fx.config import KINDS, TomaConfig
from toma_fx.passes.find.region import Region


def early_blocks(regions: list[Region], count: int) -> set[str]:
    """Paths of the first `count` blocks of each class, in graph order."""
    blocks: dict[str, list[str]] = {}
    for region in regions:
        paths = blocks.setdefault(region.block_class, [])
        if region.block_path not in paths:
            paths.append(region.block_path)
    return {path for paths in blocks.values() for path in paths[:count] if path}


def unwanted(region: Region, config: TomaConfig, early: set[str]) -> str:
    """Why the configuration leaves a region as it is; nothing where it does not.

    Args:
        region: with its proof.
        config: what the user chose.
        early: from `early_blocks`.
    """
    if config.ratio == 0:
        return "ratio 0 removes no token"
    if config.regions not in ("all", "auto") and region.kind not in config.regions:
        return f"regions leaves out {region.kind}"
    if config.include and not any(_matches(pattern, region) for pattern in config.include):
        return "no pattern of include matches"
    if any(_matches(pattern, region) for pattern in config.exclude):
        return "a pattern of exclude matches"
    if region.block_path in early:
        return f"among the first {config.skip_blocks} of its class: skip_blocks"
    if region.tokens < config.min_tokens:
        return f"{region.tokens} tokens are fewer than min_tokens={config.min_tokens}"
    if config.cfg_pairs and region.entry.meta["val"].shape[0] % 2:
        return f"cfg_pairs needs an even batch, not {region.entry.meta['val'].shape[0]}"
    return ""


def unmatched_patterns(regions: list[Region], config: TomaConfig) -> list[str]:
    """Patterns of `include` and `exclude` that match no region: most likely a spelling mistake."""
    return [
        pattern
        for pattern in (*config.include, *config.exclude)
        if not any(_matches(pattern, region) for region in regions)
    ]


def _matches(pattern: str, region: Region) -> bool:
    """Whether a pattern over module paths names a region, `kind:pattern` one of that kind."""
    kind, _, path = pattern.partition(":")
    if kind in KINDS and path:
        return kind == region.kind and fnmatch(region.module_path, path)
    return fnmatch(region.module_path, pattern)
