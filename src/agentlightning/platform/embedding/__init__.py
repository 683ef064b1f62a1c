"""Texts to vectors, on this machine and without torch: `base` says what an embedder is, `choose` which one is used."""
