"""The largest values of settings, and the values that stand for a setting left open."""

Pair = tuple[int, int]
"""Two numbers of pixels."""

LARGEST_SEED = 2**63 - 1

MAX_SIZE_PX = 2**14
"""The longest side of an image; what fits in memory is less on most machines."""

MAX_IMAGES = 1_000_000
"""The most images of one prompt in one call: all are listed before the first is made."""

MAX_TOLD_PX = 2**16
"""The longest side that a model is told of: its images may come from larger ones."""

UNTOLD, AS_POSITIVE = (0, 0), (-1, -1)
"""A size that is left to the image's own, and one that is left to that of the prompt."""

MAX_GRADIENT = 2040
"""The largest gradient of an image of 8 bits, by Sobel's 3 x 3 filters and the L1 norm."""

MAX_STEPS = 100_000
"""The most sampling steps, a hundred times the longest usual noise schedule."""

MAX_PROMPT_CHUNKS = 3
"""The most chunks that a prompt is split into, each as long as the text encoder's context."""
