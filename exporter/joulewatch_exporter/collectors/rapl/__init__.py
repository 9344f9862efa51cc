"""RAPL: energy counters of Intel and AMD processors."""
