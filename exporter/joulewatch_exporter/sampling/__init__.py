"""Reads every sensor on schedule and turns readings into counters, gauges and health."""
