"""A host in a virtual machine: systemd, cgroup v2, KVM, an IOMMU and devices to spare. Its image, and booting it."""
