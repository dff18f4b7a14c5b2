"""Importers: each brings the sources that one type of lorry names into a git repository."""
