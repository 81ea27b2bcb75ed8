"""Record the calls of a plugin, and replay them against another version of it."""
