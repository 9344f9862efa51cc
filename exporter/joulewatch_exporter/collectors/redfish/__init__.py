"""Redfish: the power of whole servers, over HTTPS."""
