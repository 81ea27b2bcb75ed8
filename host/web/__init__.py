"""HTTP: accept, identify the protocol, authenticate, frame the answer for the client."""
