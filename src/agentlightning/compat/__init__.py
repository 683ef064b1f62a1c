"""Modules at the paths of the public 0.3 API, for programs written for it: `agentlightning.types` and so on.

The package's `__path__` ends with this folder, so `compat/types.py` is `agentlightning.types`. They hold names only;
what the names stand for lives in the rooms. New programs import from `agentlightning` itself.
"""
