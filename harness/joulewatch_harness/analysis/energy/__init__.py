"""The energy of one window, from series of samples or from edges."""
