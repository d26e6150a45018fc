"""The model families: what is different between LongCat-Image and LongCat-Video lives here."""
