"""Further captions of one that is a list of tags: in other orders, with tags left out."""

import random

from ..settings.dataset import DatasetOptions

_TRIES = 4  # for each wanted caption: a short list has few orders, and some come twice


def tag_variants(caption: str, options: DatasetOptions) -> tuple[str, ...]:
    """Up to `caption_variants` captions that differ from `caption` and from each other; none unless the options ask for them.

    A function of the caption and the options alone: the same caption gives the same ones everywhere. The first keep_tags
    tags stay where they are. A caption of which every tag would be left out keeps one of them.
    """
    separator = options.tag_separator.strip()
    if not options.makes_variants or not separator:
        return ()
    tags = [tag for part in caption.split(separator) if (tag := part.strip())]
    kept, free = tags[: options.keep_tags], tags[options.keep_tags :]
    if not free or (len(free) == 1 and not options.tag_dropout):
        return ()
    draw = random.Random(f"tags of {caption}")
    found: dict[str, None] = {}
    for _ in range(options.caption_variants * _TRIES):
        chosen = [tag for tag in free if draw.random() >= options.tag_dropout]
        if not chosen and not kept:
            chosen = [draw.choice(free)]
        if options.shuffle_tags:
            draw.shuffle(chosen)
        made = f"{separator} ".join([*kept, *chosen])
        if made != caption:
            found[made] = None
        if len(found) == options.caption_variants:
            break
    return tuple(found)
