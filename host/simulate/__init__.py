"""The pool laboratory: the gateway's own scheduling against simulated providers, in virtual time."""
