"""Values: units, names, specs, samples, changes and errors. Pure: no I/O, no libvirt, no click."""
