"""What can be plugged into ssfnas: candidate ops, relaxations of the architecture, training objectives.

Importing this package imports no torch. The three registries are `OPS`, `RELAXATIONS` and `LOSSES`; a
plugin registers with a decorator and is found by an entry point (see CONTRIBUTING.md).
"""

from registry.core import (
    LOSSES,
    OPS,
    REGISTRIES,
    RELAXATIONS,
    OpFacts,
    Options,
    Plugin,
    PluginError,
    Registry,
)

__all__ = [
    "LOSSES",
    "OPS",
    "REGISTRIES",
    "RELAXATIONS",
    "OpFacts",
    "Options",
    "Plugin",
    "PluginError",
    "Registry",
]
SSFNAS_REGISTRY = True  # ssfnas_cli looks for this: `registry` is a common word for a module
