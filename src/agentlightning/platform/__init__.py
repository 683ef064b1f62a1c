"""The platform: one HTTP API with users, roles, limits and an audit log, in front of everything else.

`app.create_app` makes it; nothing here is loaded before it is used. Knows no model library.
"""
