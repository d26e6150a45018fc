"""`python -m comfyui_longcat …` is the same program as the console command `longcat …`."""

from .nodes.terminal.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
