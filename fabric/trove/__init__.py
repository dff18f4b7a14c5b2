"""Keeps git repositories with their lorries, and the artifact store."""
