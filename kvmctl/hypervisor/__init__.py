"""The only place that imports libvirt."""

import os

# libvirt reads this when it is loaded. Without it, it writes warnings of its own to stderr, such as that the host's
# name cannot be resolved; 4 is errors only.
os.environ.setdefault("LIBVIRT_DEBUG", "4")
