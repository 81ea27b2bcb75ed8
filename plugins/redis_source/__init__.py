"""Credentials that a coordinator hands out request by request, over Redis or Valkey."""
