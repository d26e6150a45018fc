"""The network of LongCat-Video in plain PyTorch; no library has it."""
