"""JSON files of an earlier installation: what they may look like, and how they get into the tables."""
