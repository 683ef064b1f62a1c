"""Tasks: what users ask agents to do, from the request to the kept result. A task is a rollout in the store."""
