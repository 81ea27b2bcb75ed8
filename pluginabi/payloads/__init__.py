"""Request and answer structs of every method, one file per capability family."""
