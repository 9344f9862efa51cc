"""From samples and windows to joules per inference; needs neither the runner nor a runtime."""
