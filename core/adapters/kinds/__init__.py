"""Kinds of adapters: one file each, chosen by name through `kind`."""
