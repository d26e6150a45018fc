"""How the tiny twins were trained and are scored; not part of the package."""
