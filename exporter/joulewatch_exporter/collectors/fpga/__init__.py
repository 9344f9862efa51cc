"""FPGA cards and boards."""
