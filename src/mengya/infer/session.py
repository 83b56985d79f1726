from mengya.text.tokenizer import Tokenizer


class TextStream:
    """Tokens in, text out: whole characters as soon as they are complete. Joined, they equal `decode` of all tokens
    (but SentencePiece turns the bytes around one that is not UTF-8 into U+FFFD, also those that are out already).

    A token may end inside a character; decoding then ends in U+FFFD, which is held back. What a token adds is told from
    the tokens before it, because a tokenizer may write a word otherwise at the beginning of a text: SentencePiece drops
    the space before the first one.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._known: list[int] = []  # the last tokens whose text is out; they stand before the others
        self._pending: list[int] = []
        self._emitted = 0  # characters of the pending tokens that are out already

    def _text(self) -> str:
        """Of the pending tokens."""
        before = self._tokenizer.decode(self._known)
        return self._tokenizer.decode([*self._known, *self._pending])[len(before) :]

    def push(self, token: int) -> str:
        self._pending.append(token)
        text = self._text()
        if text and not text.endswith("\ufffd"):
            return self.flush()
        piece, whole = text[self._emitted :].rstrip("\ufffd"), len(text.rstrip("\ufffd"))
        self._emitted = max(self._emitted, whole)
        return piece

    def flush(self) -> str:
        """What is left at the end, an unfinished character as U+FFFD."""
        text = self._text()
        piece = text[self._emitted :]
        if text:  # tokens without a text say nothing about what follows them
            self._known, self._pending, self._emitted = self._pending, [], 0
        return piece
