"""Fixtures of the building tests."""

from building_kit import base, kit, tools  # noqa: F401
