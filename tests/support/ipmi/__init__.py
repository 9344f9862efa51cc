"""IPMI for tests: OpenIPMI's BMC simulator, ipmitool, and a simulated device for in-band access."""
