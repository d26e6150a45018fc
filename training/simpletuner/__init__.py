"""SimpleTuner's configuration files to settings and back."""
