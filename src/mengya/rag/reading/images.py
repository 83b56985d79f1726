"""Pictures: the text in them, by OCR."""

from mengya.errors import UserError
from mengya.rag.reading.draft import Draft, Source
from mengya.rag.reading.ocr import Ocr


def read(source: Source, draft: Draft) -> None:
    """A page a picture; a file may hold several (TIFF)."""
    from PIL import Image, ImageSequence, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # our own limit says what to do
    ocr = Ocr(source.limits)
    try:
        with Image.open(source.path) as image:
            count = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
            for number, frame in enumerate(ImageSequence.Iterator(image), 1):
                if number > min(count, source.limits.pages):
                    break
                pixels = frame.width * frame.height
                if pixels > source.limits.pixels:
                    raise UserError(
                        f"the picture has {frame.width:,} x {frame.height:,} pixels; "
                        f"{source.limits.pixels:,} in all is the most; make it smaller"
                    )
                if ocr.available:
                    found = ocr.read(frame)
                    found.add(draft, number)
                    draft.page(number, "ocr", note=found.note)
                else:
                    draft.page(number, "unread", note=ocr.missing)
                source.progress(number, count)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError("the picture is damaged, or of a kind that is not read; save it as PNG or JPEG") from error
