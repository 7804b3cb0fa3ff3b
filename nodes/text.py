"""Short texts that nodes show."""


def quantity(number: int) -> str:
    """A number with its prefix: 456 k, 1.42 G."""
    for limit, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g} {prefix}"
    return f"{number} "
