"""State that outlives a request: one small interface, and a store in memory as the embedded default."""
