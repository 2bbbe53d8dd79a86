"""An op, a relaxation, a loss and a strategy for ssfnas, one to a module; the entry points are in pyproject.toml."""
