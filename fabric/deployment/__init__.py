"""Cluster morphs: their guests, settings, users, and conflicts between them."""
