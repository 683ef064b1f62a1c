"""The tools of agents on the platform: made from the settings on disk, tried at the start, callable by users."""
