"""Where things are kept: git repositories with their lorries, and the artifact store."""
