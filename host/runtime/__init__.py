"""Plugins: discovery, processes, calls, callbacks, snapshots."""
