"""The life of a request, in the order in which it happens."""
