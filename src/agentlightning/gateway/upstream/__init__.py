"""What answers calls: one file per kind of model server, all behind `base.Upstream`."""
