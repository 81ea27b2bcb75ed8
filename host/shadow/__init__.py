"""Shadow mode: another version of a plugin gets copies of its calls, and its answers are compared, never used."""
