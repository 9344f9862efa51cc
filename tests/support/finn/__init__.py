"""A stand-in for pynq with a programmable accelerator, and look-alikes of the folders that a FINN build leaves."""
