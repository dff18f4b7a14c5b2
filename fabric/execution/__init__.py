"""Runs steps on an engine that speaks the Remote Execution API, version 2.

Only `fabric.worker` imports this, and only with the setting `execute`: it needs the extra `reapi`.
"""
