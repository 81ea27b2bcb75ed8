"""The Anthropic Messages API with API keys."""
