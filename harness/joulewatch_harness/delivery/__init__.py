"""Run annotations on their way to Prometheus: by remote write or a Pushgateway."""
