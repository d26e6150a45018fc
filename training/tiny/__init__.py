"""The tiny family: a drawn world and model twins of a few megabytes for tests, demo and rehearsal."""
