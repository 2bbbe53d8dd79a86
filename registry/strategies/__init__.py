"""Strategies: what an architecture is searched with."""
