"""No weighting."""

from . import Weighting, alike

METHOD = Weighting(help="everything counts alike", weight=alike)
