"""HTTP clients of exporters and of Prometheus, with one set of options."""
