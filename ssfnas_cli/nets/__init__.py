"""The supernet, derived networks, and their heads."""
