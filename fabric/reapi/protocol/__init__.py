"""The published protocol of remote execution, and the code that `make protocol` makes of it.

The files are those that BuildStream 2.8.1 has on PyPI; only an import among them names this folder.
"""
