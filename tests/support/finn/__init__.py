"""A fake of pynq with a programmable accelerator, and imitations of the folders that a FINN build writes."""
