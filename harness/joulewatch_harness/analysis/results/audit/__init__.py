"""The audit of a run: what limits its results, or contradicts them."""
