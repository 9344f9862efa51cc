"""An emulated Redfish service."""
