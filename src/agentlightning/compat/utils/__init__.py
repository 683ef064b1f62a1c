"""0.3's `agentlightning.utils`."""
