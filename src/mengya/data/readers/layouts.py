"""Files of JSON that hold their rows in another way than one value a row: spread into rows."""

from collections.abc import Iterator, Mapping
from typing import Any

from mengya.data import fields
from mengya.data.fields import is_filled, of_columns
from mengya.data.readers.rows import Rejected, Row

_KEYS = frozenset(
    "data rows examples items records results dataset instances samples train training test dev valid validation eval"
    " conversations dialogues dialogs list 数据 样本".split()
)
"""Keys under which a file has its rows."""
_ROW_FIELDS = frozenset(
    (*fields.LISTS, *fields.PROMPTS, *fields.INPUTS, *fields.ANSWERS, *fields.CHOSEN, *fields.TEXTS, *fields.HISTORIES)
)
_LISTS = frozenset(fields.LISTS)
_OF_ONE_ROW = _LISTS.union(fields.TEXTS)
"""Names under which a list of objects is the turns of one conversation, or the paragraphs of one document."""
_SPEAKERS = frozenset("human assistant user gpt bot 用户 助手".split())


def spread(rows: Iterator[Row | Rejected]) -> Iterator[Row | Rejected]:
    """The rows of a file, out of its values.

    An array of rows that stands in one line is its rows. A file with a single object may hold them under a key, as
    columns, or by their ids. A passage with a list `qas` of questions is one row for each of them.
    """
    first, second = next(rows, None), next(rows, None)
    for row in (first, second):
        if row is not None:
            yield from _within(row, alone=second is None)
    for row in rows:
        yield from _within(row, alone=False)


def _within(row: Row | Rejected, alone: bool) -> Iterator[Row | Rejected]:
    if isinstance(row, Rejected):
        yield row
        return
    around = _around(row.value) if alone else ()
    for value in _rows(row.value, alone):
        yield row._replace(value=value, around=around)
        around = ()


def _rows(value: Any, alone: bool) -> Iterator[Any]:
    found = _listed_rows(value, alone) if alone else _array(value, alone)
    if found is None:
        yield from _questions(value)
    else:
        for inner in found:
            yield from _rows(_unwrapped(inner), alone=False)


def _array(value: Any, alone: bool) -> list[Any] | None:
    """The rows in an array, unless it is one conversation."""
    if isinstance(value, list) and (value or alone) and all(isinstance(item, dict) for item in value):
        return None if any(_is_turn(item, alone) for item in value) else value
    return value if isinstance(value, list) and value and all(map(_are_turns, value)) else None


def _are_turns(item: Any) -> bool:
    """Whether it is a list of objects with a turn among them: one conversation."""
    rows = isinstance(item, list) and all(isinstance(turn, dict) for turn in item)
    return rows and any(_is_turn(turn, alone=True) for turn in item)


def _is_turn(item: Mapping[Any, Any], alone: bool) -> bool:
    """Whether an object is what somebody says, rather than a row. `alone`: nothing else stands in the file."""
    names = {_plain(name) for name in item}
    if not names.isdisjoint(fields.ROLES):
        return True
    return not alone and not names.isdisjoint((*fields.CONTENTS, *_SPEAKERS))


def _plain(name: Any) -> str:
    return str(name).strip().lower()


def _is_row(value: Any) -> bool:
    """Whether an object has a field that rows have."""
    return (
        isinstance(value, dict) and not _ROW_FIELDS.isdisjoint(map(_plain, value)) and not _is_turn(value, alone=True)
    )


def _unwrapped(value: Any) -> Any:
    """The row in {"row_idx": …, "row": {…}}."""
    inner = value.get("row") if isinstance(value, dict) else None
    return inner if isinstance(inner, dict) else value


def _listed_rows(value: Any, alone: bool) -> list[Any] | None:
    """The rows of a file that has this single value; None if the value is itself a row."""
    if isinstance(value, list):
        return value if value and all(isinstance(item, str) for item in value) else _array(value, alone)
    if not isinstance(value, dict) or not value or _is_one_row(value):
        return None
    names, inner = value.get("columns"), value.get("data")
    if isinstance(names, list) and isinstance(inner, list) and all(isinstance(cells, list) for cells in inner):
        return [dict(zip(names, cells, strict=False)) for cells in inner]
    if all(isinstance(column, dict) for column in value.values()):
        return _keyed(value)
    columns = of_columns(value)
    if columns is not None and _is_row(columns[0] if columns else None) and not _has_turns(value):
        return columns
    under = _keys_of_rows(value)
    return [row for key in under for row in value[key]] if under else None


def _keys_of_rows(value: Mapping[str, Any]) -> list[str]:
    """The keys of a file's single object under which its rows are."""
    return [k for k, v in value.items() if isinstance(v, list) and v and _holds_rows(_plain(k), v)]


def _around(value: Any) -> tuple[str, ...]:
    """The filled fields beside such keys."""
    if not isinstance(value, dict) or _is_one_row(value) or of_columns(value) is not None:
        return ()
    keys = _keys_of_rows(value)
    return tuple(k for k, v in value.items() if k not in keys and is_filled(v)) if keys else ()


def _is_one_row(value: Mapping[Any, Any]) -> bool:
    """Whether an object is itself a row: words stand in it, or turns."""
    for key, inner in value.items():
        name = _plain(key)
        turns = inner if name in _LISTS and isinstance(inner, list) else []
        if any(isinstance(turn, dict) and _is_turn(turn, alone=False) for turn in turns):
            return True
        if name in _ROW_FIELDS and isinstance(inner, str) and inner.strip():
            return True
    return False


def _has_turns(value: Mapping[str, list[Any]]) -> bool:
    """Whether a list in an object is the turns of one conversation, or the paragraphs of one document."""
    return any(
        isinstance(item, dict) and (_plain(name) in _OF_ONE_ROW or _is_turn(item, alone=False))
        for name, column in value.items()
        for item in column
    )


def _holds_rows(name: str, items: list[Any]) -> bool:
    """Whether the list under a key has the file's rows."""
    if all(isinstance(item, dict) for item in items):
        if any(_is_turn(item, alone=True) for item in items):
            return False
        rows = all(_is_row(_unwrapped(item)) for item in items)
        return (name in _KEYS or rows) if name not in _OF_ONE_ROW else all(map(_has_list, items))
    turns = (isinstance(item, list) and item and all(isinstance(turn, dict) for turn in item) for item in items)
    return name in _KEYS and all(turns)


def _has_list(item: Mapping[str, Any]) -> bool:
    return not _LISTS.isdisjoint(map(_plain, item))


def _keyed(value: Mapping[str, dict]) -> list[Any] | None:
    """The rows of an object of objects: columns by row numbers (as pandas writes them), splits, or rows by ids."""
    first = next(iter(value.values()))
    numbered = first and all(str(key).isdigit() for key in first)
    alike = len({frozenset(column) for column in value.values()}) == 1
    if numbered and alike and not all(str(name).isdigit() for name in value):
        return [{name: column[key] for name, column in value.items()} for key in first]
    if len(value) == 1 and (rows := _listed_rows(first, alone=True)) is not None:
        return rows
    return list(value.values()) if all(_is_row(row) for row in value.values()) else None


def _questions(value: Any) -> Iterator[Any]:
    """A row; or the rows of a passage with several questions, as reading comprehension has them (SQuAD)."""
    if isinstance(value, dict):
        for key in ("paragraphs", "qas"):
            inner = value.get(key)
            if not isinstance(inner, list) or not inner or not all(isinstance(item, dict) for item in inner):
                continue
            if key == "qas" or all(isinstance(item.get("qas"), list) for item in inner):
                around = {name: other for name, other in value.items() if name != key}
                for item in inner:
                    yield from _questions(around | item)
                return
    yield value
