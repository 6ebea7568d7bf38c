"""Texts for generation: where images stand in a prompt, which of them each token may look at, and chats with images."""

import re
from collections.abc import Sequence

import numpy as np

# Before any chat template: a message whose content is a list of parts becomes one string with the image token in it, so
# that the template of a language model, which knows strings alone, serves chats with images.
_JOIN_PARTS = (
    "{%- set joined = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is defined and message['content'] is not string and message['content'] is iterable -%}"
    "{%- set parts = namespace(text='') -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{%- set parts.text = parts.text + 'IMAGE_TOKEN' -%}"
    "{%- else -%}{%- set parts.text = parts.text + part['text'] -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- set joined.messages = joined.messages + [dict(message, content=parts.text)] -%}"
    "{%- else -%}{%- set joined.messages = joined.messages + [message] -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- set messages = joined.messages -%}"
)


def chat_template_with_images(template: str, image_token: str) -> str:
    """A language model's chat template for messages with image parts; one that is made so already stays as it is."""
    preamble = _JOIN_PARTS.replace("IMAGE_TOKEN", image_token)
    return template if template.startswith(preamble) else preamble + template


def take_image_tokens(text: str, image_token: str) -> tuple[str, list[int]]:
    """
    Takes the image tokens out of a prompt, so that the language model reads the text as it would without images. Of a
    space on both sides one goes too, and of a line break on both sides; a text begins as a line does.

    Args:
        text (`str`): the prompt.
        image_token (`str`): what stands for an image, for example `"<image>"`.

    Returns:
        `tuple[str, list[int]]`: the text without them, and for each image the character before which it stands.
        Images with nothing but spaces between them stand in one place. One at the very end stands before the last
        character that is no space: the answer is read off the last token, which must see it.

    Example:

    ```python
    >>> from vtfusion.prompts_vtfusion import take_image_tokens

    >>> take_image_tokens("<image> What is new in <image> ?", "<image>")
    ('What is new in ?', [0, 15])
    ```
    """
    places: list[int] = []
    clean, end = "", 0
    for match in re.finditer(re.escape(image_token) + r"(\r?\n|\s)?", text):
        between = text[end : match.start()]
        clean += between
        places.append(places[-1] if places and not between.strip() else len(clean))
        before, behind = clean[-1:] or "\n", match[1] or ""
        is_double = before == "\n" or (before.isspace() and not behind.endswith("\n"))
        end = match.end() if is_double else match.end() - len(behind)
    clean += text[end:]
    last = max(len(clean.rstrip()) - 1, 0)
    return clean, [min(place, last) for place in places]


def visible_images(ends: Sequence[int], places: Sequence[int], scope: str) -> np.ndarray:
    """
    Which images each token may look at.

    Args:
        ends (`Sequence[int]`): where each token ends (exclusive), in characters; 0 for one that shows none.
        places (`Sequence[int]`): for each image the character before which it stands.
        scope (`str`): `"latest"` for the images of the last place before the token, `"all"` for all before it.

    Returns:
        `np.ndarray` of shape `(num_tokens, num_images)`: 1 or 0.
    """
    # Tokens without characters (begin, end) see what the one before them sees.
    reached = np.maximum.accumulate(np.asarray(ends, dtype=np.int64))
    stands = np.asarray(places, dtype=np.int64)
    seen = (reached[:, None] > stands[None]) | (stands[None] == 0)
    if scope == "latest" and len(stands):
        latest = np.where(seen, stands[None], -1).max(axis=1, keepdims=True)
        seen &= stands[None] == latest
    return seen.astype(np.int64)


__all__ = ["chat_template_with_images", "take_image_tokens", "visible_images"]
