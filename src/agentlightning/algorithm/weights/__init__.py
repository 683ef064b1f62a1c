"""weights room."""
