"""Loads and validates morphs, and computes build graph, split rules and cache keys.  No I/O."""
