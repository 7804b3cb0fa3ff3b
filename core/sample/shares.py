"""How far a sampling is."""


def sigma_after(share: float, shift: float) -> float:
    """The sigma after this share of the way from noise to data: the host's percent_to_sigma."""
    if share <= 0.0 or share >= 1.0:
        return 1.0 if share <= 0.0 else 0.0
    return shift * (1.0 - share) / (1.0 + (shift - 1.0) * (1.0 - share))
