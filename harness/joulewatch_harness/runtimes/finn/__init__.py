"""FINN accelerators on FPGAs."""
