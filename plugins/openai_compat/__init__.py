"""OpenAI-compatible upstreams: Chat Completions, Embeddings, and Responses where the provider has it."""
