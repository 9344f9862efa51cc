"""One module per way to run ``joulewatch-exporter``."""
