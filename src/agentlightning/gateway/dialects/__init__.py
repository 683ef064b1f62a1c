"""What agents speak: one file per family of APIs, translating to and from canonical calls."""
