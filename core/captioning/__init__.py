"""Captions that a vision-language model writes beside the files of a dataset."""
