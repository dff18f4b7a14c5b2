"""Brings definitions of versions 0 to 7 of the format to version 8."""
