"""Staging areas, the bubblewrap sandbox, the build steps, and the assembly of systems."""
