"""Words that depend on a number."""


def counted(number: float, what: str, many: str = "") -> str:
    """1 step, 1,500 steps, or 16.7 steps for what is no whole number. `many`: of any number but one, where it takes no s."""
    shown = f"{number:,.0f}" if float(number).is_integer() else f"{number:,.1f}"
    return f"{shown} {what if number == 1 else many or what + 's'}"


def some(number: int, total: int, what: str, one: str, many: str) -> str:
    """1 of 40 layers is, 2 of 40 layers are. `one`, `many`: the verb of one, and of any other number."""
    return f"{number} of {counted(total, what)} {one if number == 1 else many}"
