"""The parts of an Office file, and their XML, of which only local names count: there are two sets of namespaces."""

import posixpath
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mengya.errors import UserError

INSIDE = "files inside of it"
"""Which are not read, and counted."""


class Parts:
    """What is in an Office file, by relationships, as Office finds it. `archives.office_kind` has looked it through."""

    def __init__(self, path: Path) -> None:
        self._archive = zipfile.ZipFile(path)
        self._names = {name.lower(): name for name in self._archive.namelist()}
        self.main = next(self.related("", "officeDocument"), "")
        if not self.main:
            raise UserError("it has no main part and is damaged; open it and save it again")

    def related(self, part: str, kind: str) -> Iterator[str]:
        """Names of the parts to which `part` ("": the package) has a relationship of a kind such as "footnotes"."""
        return (name for its_kind, name in self.relations(part).values() if its_kind == kind)

    def relations(self, part: str) -> dict[str, tuple[str, str]]:
        """Id -> (kind, name of the part), of those that are in the file."""
        folder, name = posixpath.split(part)
        root = self.xml(posixpath.join(folder, "_rels", f"{name}.rels"))
        found = {}
        for relation in root if root is not None else ():
            target = posixpath.normpath(posixpath.join("/", folder, attribute(relation, "Target"))).lstrip("/")
            if attribute(relation, "TargetMode") != "External" and target.lower() in self._names:
                kind = attribute(relation, "Type").rpartition("/")[2]
                found[attribute(relation, "Id")] = kind, target
        return found

    def links(self, part: str) -> dict[str, str]:
        """Id -> address, of what a part links to outside of the file."""
        folder, name = posixpath.split(part)
        root = self.xml(posixpath.join(folder, "_rels", f"{name}.rels"))
        return {
            attribute(one, "Id"): attribute(one, "Target")
            for one in (root if root is not None else ())
            if attribute(one, "TargetMode") == "External" and attribute(one, "Type").endswith("/hyperlink")
        }

    def xml(self, name: str) -> Any:
        """The root of a part; None where there is no such part."""
        from lxml import etree

        actual = self._names.get(name.lower())
        if actual is None:
            return None
        try:
            return etree.fromstring(
                self._archive.read(actual), etree.XMLParser(resolve_entities=False, no_network=True)
            )
        except etree.XMLSyntaxError as error:
            raise UserError(f"its part {name} is damaged; open it and save it again") from error

    def read(self, name: str) -> bytes:
        return self._archive.read(self._names[name.lower()])

    def each(self, name: str, *wanted: str) -> Iterator[Any]:
        """Elements of a large part, one after the other, each forgotten when the next is asked for."""
        from lxml import etree

        with self._archive.open(self._names[name.lower()]) as file:
            for _, element in etree.iterparse(
                file, tag=["{*}" + one for one in wanted], resolve_entities=False, no_network=True
            ):
                yield element
                element.clear()
                while element.getprevious() is not None:
                    del element.getparent()[0]


def tag(element: Any) -> str:
    """Without its namespace; "" of a comment."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def attribute(element: Any, name: str, default: str = "") -> str:
    for key, value in element.attrib.items():
        if key.rpartition("}")[2] == name:
            return value
    return default


def child(element: Any, *path: str) -> Any:
    """The first child of that tag, and its child, and so on; None where one is missing."""
    for name in path:
        element = next((one for one in element if tag(one) == name), None) if element is not None else None
    return element


def value(element: Any, *path: str) -> str | None:
    """The `val` of a child such as <w:numFmt w:val="decimal"/>; "" without one, None without the child."""
    found = child(element, *path)
    return None if found is None else attribute(found, "val")


def is_on(element: Any, name: str) -> bool:
    """Of a switch such as <w:vanish/>."""
    return value(element, name) not in (None, "0", "false", "off")
