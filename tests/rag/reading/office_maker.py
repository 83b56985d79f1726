"""Word files from the XML of their parts, for what no library writes."""

import io
import zipfile
from xml.sax.saxutils import escape

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
STRICT = 'xmlns:w="http://purl.oclc.org/ooxml/wordprocessingml/main"'
_TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
_RELATION = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/"


def archive(parts: dict[str, str | bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in parts.items():
            file.writestr(name, content)
    return buffer.getvalue()


def docx(body: str, namespace: str = W, **parts: str) -> bytes:
    """`parts`: the content of numbering, styles, footnotes, header1, footer1 and so on."""
    return archive(docx_parts(body, namespace, **parts))


def docx_with(body: str, name: str, content: bytes) -> bytes:
    """With one file more, whose relation is "chunk"."""
    parts = docx_parts(body)
    relation = f'<Relationships><Relationship Id="chunk" Type="{_RELATION}aFChunk" Target="{name}"/></Relationships>'
    return archive(parts | {"word/_rels/document.xml.rels": relation, f"word/{name}": content})


def docx_drawing(content: str, kind: str, name: str, part: str | bytes, around: str = "drawing") -> bytes:
    """With something drawn behind its first words, which names the part by its relation "rId9"."""
    spaces = f'xmlns:a="a" xmlns:c="c" xmlns:o="o" xmlns:r="{_RELATION[:-1]}"'
    parts = docx_parts(p("前", more=f"<w:r><w:{around} {spaces}>{content}</w:{around}></w:r>") + p("后"))
    relation = f'<Relationships><Relationship Id="rId9" Type="{_RELATION}{kind}" Target="{name}"/></Relationships>'
    return archive(parts | {"word/_rels/document.xml.rels": relation, f"word/{name}": part})


def docx_parts(body: str, namespace: str = W, **parts: str) -> dict[str, str | bytes]:
    kinds = {name: name.rstrip("0123456789") for name in parts}
    relation = f'<Relationship Id="r{{}}" Type="{_RELATION}{{}}" Target="{{}}.xml"/>'.format
    relations = "".join(relation(i, kind, name) for i, (name, kind) in enumerate(kinds.items()))
    roots = {"footnotes": "footnotes", "endnotes": "endnotes", "header": "hdr", "footer": "ftr"}
    files = {
        f"word/{name}.xml": f"<w:{(root := roots.get(kind, kind))} {namespace}>{parts[name]}</w:{root}>"
        for name, kind in kinds.items()
    }
    return {
        "[Content_Types].xml": f'<Types><Override PartName="/word/document.xml" ContentType="{_TYPE}"/></Types>',
        "_rels/.rels": f"<Relationships>{relation('d', 'officeDocument', 'word/document')}</Relationships>",
        "word/document.xml": f"<w:document {namespace}><w:body>{body}</w:body></w:document>",
        "word/_rels/document.xml.rels": f"<Relationships>{relations}</Relationships>",
        **files,
    }


def p(text: str = "", properties: str = "", more: str = "") -> str:
    run = f'<w:r><w:t xml:space="preserve">{escape(text)}</w:t></w:r>' if text else ""
    return f"<w:p><w:pPr>{properties}</w:pPr>{run}{more}</w:p>"


def numbered(text: str, number: int, level: int = 0) -> str:
    return p(text, f'<w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="{number}"/></w:numPr>')


def level(index: int, form: str, text: str, more: str = "") -> str:
    start = f'<w:lvl w:ilvl="{index}"><w:start w:val="1"/><w:numFmt w:val="{form}"/>{more}'
    return f'{start}<w:lvlText w:val="{text}"/></w:lvl>'


def numbering(*lists: str, restarts: str = "") -> str:
    """Lists of those levels, under the numbers 1, 2, …; `restarts`: more <w:num>."""
    abstract = "".join(f'<w:abstractNum w:abstractNumId="{i}">{one}</w:abstractNum>' for i, one in enumerate(lists, 1))
    nums = "".join(f'<w:num w:numId="{i}"><w:abstractNumId w:val="{i}"/></w:num>' for i in range(1, len(lists) + 1))
    return abstract + nums + restarts
