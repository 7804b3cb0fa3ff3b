"""Forms in which the frozen base can be held: one file each, chosen by name through `precision`."""
