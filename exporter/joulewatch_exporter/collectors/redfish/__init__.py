"""Server power over HTTPS, from services that speak Redfish."""
