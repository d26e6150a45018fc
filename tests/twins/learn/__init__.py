"""How the tiny twins learn the drawn world: one command builds them all from nothing."""
