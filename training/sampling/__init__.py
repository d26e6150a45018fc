"""Sampling: inference schedule and Euler loops."""
