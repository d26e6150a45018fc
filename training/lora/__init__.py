"""The adapter: injecting it, and its file."""
