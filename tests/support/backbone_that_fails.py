"""A module that does not survive its own import."""

raise OSError("libstem.so: cannot open")
