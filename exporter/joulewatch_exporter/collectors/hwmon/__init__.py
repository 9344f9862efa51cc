"""Board and chip sensors of the Linux hwmon subsystem."""
