"""What ``joulewatch-exporter`` does: serve, ``--once``, ``check``."""
