"""Who somebody is and what they may do: users, logins, tokens, API keys, permissions and the audit log."""
