"""IPMI: the power of whole servers, from their baseboard management controllers (BMCs).

A BMC answers in milliseconds or not at all, so none is asked in the path of a scrape: each has a thread and a socket
of its own (`workers.Poller`), and what it has told is shown with its own time. One exporter reads many BMCs over the
network, from the configuration or from a target file that may change while we run, and the one of its own machine by
the kernel's device.

The node's power is DCMI's Get Power Reading; where a BMC does not know it, a sensor in watts of its SDR repository.

Source: DCMI 1.5; IPMI v2.0 revision 1.1; pyghmi 1.6.
"""

from joulewatch_exporter.collectors.ipmi.collector import IpmiCollector, IpmiOptions, IpmiTarget

__all__ = ["IpmiCollector", "IpmiOptions", "IpmiTarget"]
