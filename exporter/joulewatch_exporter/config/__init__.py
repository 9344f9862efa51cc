"""Configuration files, checked key by key."""
