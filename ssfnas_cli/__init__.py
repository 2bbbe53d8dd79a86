"""ssfnas: differentiable architecture search for long-tailed images."""

import registry

__version__ = "0.1.0"

if not getattr(registry, "SSFNAS_REGISTRY", False):
    raise SystemExit(
        f"ssfnas: '{registry.__file__}' shadows the package 'registry' of ssfnas: rename it, or run from another folder"
    )
