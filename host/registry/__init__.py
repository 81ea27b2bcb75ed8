"""Models: who serves which, under which names."""
