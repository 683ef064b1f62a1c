"""Agents: their definitions with versions, how well they do, and the designer that drafts new ones."""
