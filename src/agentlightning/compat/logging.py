"""0.3's `agentlightning.logging`."""

from agentlightning.kit.logs import setup_logging, setup_module_logging

setup = setup_logging
setup_module = setup_module_logging

__all__ = ["setup", "setup_module"]
