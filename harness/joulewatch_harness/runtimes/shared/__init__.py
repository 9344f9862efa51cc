"""What several runtimes share: inputs, outputs, model files, HTTP, traces."""
