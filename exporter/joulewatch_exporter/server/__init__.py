"""The HTTP server and the text that it serves."""
