"""LongCat-Image."""
