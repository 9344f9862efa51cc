"""Where samples come from: a Prometheus, a recording, a run rebuilt from its series."""
