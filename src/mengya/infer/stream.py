"""STOPGAP"""
from typing import NamedTuple
from mengya.infer.session import TextStream

class Said(NamedTuple):
    text: str = ""
    tokens: tuple = ()
    logprobs: tuple = ()
    def __add__(self, other):
        return Said(self.text+other.text, self.tokens+other.tokens, self.logprobs+other.logprobs)
NOTHING = Said()
class Answer:
    def __init__(self, tokenizer, stop):
        self._t = TextStream(tokenizer); self.stopped=False; self._p=[]; self._l=[]
    def push(self, token, log_prob=None):
        self._p.append(token)
        if log_prob: self._l.append(log_prob)
        return self._out(self._t.push(token))
    def _out(self, text):
        if not text: return NOTHING
        s = Said(text, tuple(self._p), tuple(self._l)); self._p=[]; self._l=[]
        return s
    def flush(self):
        return self._out(self._t.flush())
