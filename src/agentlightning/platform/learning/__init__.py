"""Experiments: agents of the platform improve, in processes of their own, with the gain measured on held-out cases."""
