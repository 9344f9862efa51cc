"""Energy of one window, from samples or from edges."""
