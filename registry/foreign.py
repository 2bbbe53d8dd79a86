"""Which plugins of other packages a result was made with, since another version of one gives another result."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path

from registry.core import REGISTRIES, Plugin


def foreign_plugins() -> dict[str, str]:
    """The plugins of other packages that this process has imported: `op blur` -> `mine 0.1, sha256 0a1b2c3d`.

    The hash is of the file that holds the plugin: what is installed to be edited keeps its version.
    """
    return {
        f"{kind} {plugin.name}": f"{plugin.origin}{_hash_of(plugin)}"
        for kind, registry in REGISTRIES.items()
        for plugin in registry.foreign()
    }


def differing(recorded: Mapping[str, str] | None) -> list[str]:
    """In words, which recorded plugins are others now. Those that this process has not imported are not looked at."""
    now = foreign_plugins()
    return [
        f"{name} ({version} then, {now[name]} now)"
        for name, version in (recorded or {}).items()
        if now.get(name, version) != version
    ]


def _hash_of(plugin: Plugin[object]) -> str:
    try:
        source = inspect.getsourcefile(inspect.unwrap(plugin.factory))
        return f", sha256 {hashlib.sha256(Path(str(source)).read_bytes()).hexdigest()[:8]}"
    except (OSError, TypeError):  # it has no file of its own
        return ""
