"""Measure the user's own code and commands: the work behind ``import joulewatch`` and ``joulewatch measure``."""
