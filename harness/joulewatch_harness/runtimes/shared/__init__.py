"""Code that several runtimes share: options, inputs, outputs, model files, HTTP, traces."""
