"""Drivers import ``Device`` from here."""
