"""What can be plugged into ssfnas: ops, relaxations, losses, heads, samplers, networks, strategies, sources.

Importing this package does not import torch. Each kind of plugin has a registry. A plugin registers with a decorator,
and an entry point lets ssfnas find it (see CONTRIBUTING.md).
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
SSFNAS_REGISTRY = True  # ssfnas_cli checks it, because other packages may be called `registry`, too
