"""Where weights come from and how they lie in memory."""
