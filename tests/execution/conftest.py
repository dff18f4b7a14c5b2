"""Fixtures of the tests of execution on an engine."""

from building_kit import base, kit, tools  # noqa: F401
from engine_kit import broken, casd, engine, packer, proxy, staged  # noqa: F401
