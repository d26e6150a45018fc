"""Rehearsing a run: the user's own data and settings on a tiny twin, and what the real run would need and meet."""
