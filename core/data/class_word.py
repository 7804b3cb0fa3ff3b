"""The same caption with a plain word in place of the trigger word: what the base knows of such a picture."""

from ..prompts import whole_word


def with_class_word(caption: str, trigger: str, class_word: str) -> str:
    """The caption with the class word wherever the trigger stands as a word of its own, or else within others.

    AI-Toolkit replaces every occurrence, also within longer words (`caption.replace`, toolkit/dataloader_mixins.py).
    "" for a caption without the trigger, and where one of the two words is empty.
    """
    if not trigger or not class_word or trigger not in caption:
        return ""
    whole = whole_word(trigger)
    if whole.search(caption):
        return whole.sub(lambda _: class_word, caption)
    return caption.replace(trigger, class_word)
