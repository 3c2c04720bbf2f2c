"""Resource control for plain libvirt/KVM hosts: one command line, no daemon, no agent."""

__version__ = "0.1.0"
