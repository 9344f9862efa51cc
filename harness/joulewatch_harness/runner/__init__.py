"""Runs a plan: windows, edges, processes, progress."""
