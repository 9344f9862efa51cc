"""Delivery of run annotations to Prometheus, by remote write or through a Pushgateway."""
