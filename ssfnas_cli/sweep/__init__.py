"""Sweeps: many pipelines from one file, as named cells of which each is made once."""
