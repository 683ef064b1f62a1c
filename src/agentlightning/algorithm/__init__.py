"""algorithm room."""
