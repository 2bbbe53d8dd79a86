"""Search, derivation, training and evaluation."""
