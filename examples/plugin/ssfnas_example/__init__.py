"""An op, a relaxation and a loss for ssfnas, one to a module, found by the entry points in pyproject.toml."""
