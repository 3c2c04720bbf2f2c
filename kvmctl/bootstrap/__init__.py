"""`python3 -m kvmctl.bootstrap`: from a fresh checkout to guests, with the standard library alone."""
