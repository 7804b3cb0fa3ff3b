"""Forms in which the frozen base can be kept: one file a format, and `formats.resolve` to choose one."""
