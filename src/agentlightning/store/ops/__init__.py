"""What the store does, as plain functions of a database session and a verb. Knows no threads, futures or HTTP."""
