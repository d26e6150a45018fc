"""Every setting, declared once: default, range, choices and help text. Imports nothing heavy."""
