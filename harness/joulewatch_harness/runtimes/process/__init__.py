"""Any program that speaks the JSON-lines protocol of PROTOCOL.md."""
