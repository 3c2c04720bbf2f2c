"""`python3 -m kvmctl.bootstrap`: from a fresh checkout to guests, with the standard library alone."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  an older one gets as far as here, and a sentence
    sys.exit(f"error: kvmctl needs Python 3.11 or later, as Debian 12 has it; this is {sys.version.split()[0]}")
