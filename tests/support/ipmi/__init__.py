"""Real IPMI programs for tests: OpenIPMI's BMC simulator, ipmitool, and a device for in-band access."""
