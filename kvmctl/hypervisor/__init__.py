"""The only place that imports libvirt."""
