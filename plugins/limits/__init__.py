"""Limits what clients may use, alone or together with other hosts."""
