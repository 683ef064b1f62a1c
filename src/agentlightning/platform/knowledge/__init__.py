"""What the platform knows: items with versions, found by their words and by their meaning."""
