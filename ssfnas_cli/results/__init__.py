"""What finished runs say: comparison, its audit, and the health of searches. It reads artifacts and trains nothing."""
