"""The endpoints: what HTTP adds to the services. Every route needs its line in `auth/permissions.py`."""
