"""What the kernel says and takes: /proc, /sys, cgroup files, psutil, PCI."""
