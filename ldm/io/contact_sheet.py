"""Images in a table with a label for each column and row."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

LETTER_PX, GAP_PX = 12, 4
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def contact_sheet(
    images: Sequence[Image.Image], column_labels: Sequence[str], row_labels: Sequence[str]
) -> Image.Image:
    """The images row by row, the columns labelled above and the rows on the left; columns are wide enough for both."""
    assert len(images) == len(column_labels) * len(row_labels), "a table has an image in every cell"
    font = ImageFont.load_default(size=LETTER_PX)
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    width = max(
        [image.width for image in images] + [round(draw.textlength(x, font=font)) for x in column_labels]
    )
    height = max(max(image.height for image in images), LETTER_PX + 2)
    left = max(round(draw.textlength(label, font=font)) for label in row_labels) + 2 * GAP_PX
    top = LETTER_PX + 2 * GAP_PX
    size = (left + len(column_labels) * (width + GAP_PX), top + len(row_labels) * (height + GAP_PX))
    sheet = Image.new("RGB", size, WHITE)
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(column_labels):
        draw.text((left + column * (width + GAP_PX), GAP_PX), label, fill=BLACK, font=font)
    for row, label in enumerate(row_labels):
        draw.text((GAP_PX, top + row * (height + GAP_PX)), label, fill=BLACK, font=font)
    for index, image in enumerate(images):
        row, column = divmod(index, len(column_labels))
        sheet.paste(image, (left + column * (width + GAP_PX), top + row * (height + GAP_PX)))
    return sheet
