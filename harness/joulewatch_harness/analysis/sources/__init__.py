"""Sources of samples: Prometheus, a recording, a run rebuilt from its series."""
