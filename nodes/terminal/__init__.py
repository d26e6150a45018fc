"""The console command `longcat`."""
