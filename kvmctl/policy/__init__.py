"""The decisions. Pure: frozen values in, values out; time and randomness arrive as arguments."""
