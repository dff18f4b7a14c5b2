"""Distbuild: build whole Linux systems from source on a fleet of machines."""

__version__ = "0.1.0"
