"""Any program that implements the JSON-lines protocol of PROTOCOL.md."""
