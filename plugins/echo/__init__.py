"""An executor without an upstream: it repeats the last user text, over every protocol."""
