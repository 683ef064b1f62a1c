"""What the platform remembers of its users: conversations, and what is worth to be known later."""
