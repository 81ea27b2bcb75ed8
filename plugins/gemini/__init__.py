"""The Gemini API with API keys."""
