"""The platform about itself: what runs, how much there is, and what may be set while it runs."""
