"""State that outlives a request or is shared between processes."""
