"""Generic building blocks; knows nothing of agents, rollouts or models."""
