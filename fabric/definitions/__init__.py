"""Morphs: load, validate, resolve the build graph, split rules, cache keys.  Pure: no I/O."""
