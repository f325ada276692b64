"""The names of image files."""

import unicodedata

_SLUG_LENGTH = 40


def image_file_name(number: int, prompt: str, seed: int | None, suffix: str = ".png") -> str:
    """Such as `0001-a-red-apple-s7.png`; it depends on the prompt and seed, not on how the image was made."""
    ending = "" if seed is None else f"-s{seed}"
    return f"{number:04d}-{slug(prompt)}{ending}{suffix}"


def slug(prompt: str) -> str:
    """The beginning of a prompt as part of a file name: letters and digits of any script, the rest as `-`."""
    text = unicodedata.normalize("NFC", prompt).lower()
    kept = "".join(c if c.isalnum() or unicodedata.category(c).startswith("M") else " " for c in text)
    return "-".join(kept.split())[:_SLUG_LENGTH].rstrip("-") or "no-words"
