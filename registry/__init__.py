"""What can be plugged into ssfnas: ops, relaxations, losses, heads, samplers, networks, strategies, sources.

Importing this package imports no torch. Each kind has a registry; a plugin registers with a decorator and is found by
an entry point (see CONTRIBUTING.md).
"""

from registry.core import (
    HEADS,
    LOSSES,
    NETWORKS,
    OPS,
    REGISTRIES,
    RELAXATIONS,
    SAMPLERS,
    SOURCES,
    STRATEGIES,
    HeadFacts,
    OpFacts,
    Options,
    Plugin,
    PluginError,
    Registry,
    SourceFacts,
)

__all__ = [
    "HEADS",
    "LOSSES",
    "NETWORKS",
    "OPS",
    "REGISTRIES",
    "RELAXATIONS",
    "SAMPLERS",
    "SOURCES",
    "STRATEGIES",
    "HeadFacts",
    "OpFacts",
    "Options",
    "Plugin",
    "PluginError",
    "Registry",
    "SourceFacts",
]
SSFNAS_REGISTRY = True  # ssfnas_cli looks for this: `registry` is a common word for a module
