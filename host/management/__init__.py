"""The management API: its listener, its key, its endpoints, and the actions that HTTP and the control socket share."""
