"""Configuration: frozen structs, strict decoding, comment-preserving editing, watching."""
