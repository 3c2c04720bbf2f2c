"""The tick and the commands: observe, decide, apply, verify, record."""
