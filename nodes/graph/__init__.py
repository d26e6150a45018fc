"""Node graphs as data: one description, two file formats, a runner."""
