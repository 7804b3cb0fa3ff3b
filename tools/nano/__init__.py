"""The nano family: a miniature Wan 2.2 that really generates, and everything that it was made with."""
