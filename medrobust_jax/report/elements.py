"""Pieces of HTML that several parts of a page are made of.

Contents: `image`.

Example:

    page += image(to_png(figure), 'png', 'A scan before and after the attack.')
"""
import base64
from html import escape


def image(content: bytes, kind: str, caption: str) -> str:
    """A figure with its caption, the picture inside; `kind` is 'png' or 'svg+xml'."""
    # An SVG as an image, not inline: two inline ones could share ids.
    data = base64.b64encode(content).decode()
    return (f'<figure><img src="data:image/{kind};base64,{data}" alt="{escape(caption)}">'
            f'<figcaption>{escape(caption)}</figcaption></figure>')
