"""First-party plugins, each a folder with `plugin.toml`; they import `pluginapi` only."""
