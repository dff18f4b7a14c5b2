"""Says what is in a system: a bill of materials, and its forms in SPDX and CycloneDX."""
