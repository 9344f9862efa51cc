"""IPMI: the power of whole servers, from their baseboard management controllers (BMCs)."""
