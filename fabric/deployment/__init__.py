"""Cluster morphs: their guests, settings and users, and what in them does not fit together."""
