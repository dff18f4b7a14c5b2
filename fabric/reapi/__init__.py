"""Speaks the Remote Execution API, version 2, as a client: the connection, and blobs.

Only this room and `fabric.execution` load gRPC; they are loaded when a setting needs them.
"""
