"""XMP packets (ISO 16684-1): the metadata that PNG, JPEG and WebP files have in common."""

from collections.abc import Iterator, Mapping
from xml.etree import ElementTree
from xml.sax.saxutils import escape

NAMESPACES = {
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "xmpNote": "http://ns.adobe.com/xmp/note/",
    "xmpRights": "http://ns.adobe.com/xap/1.0/rights/",
    "dc": "http://purl.org/dc/elements/1.1/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "plus": "http://ns.useplus.org/ldf/xmp/1.0/",
    "cc": "http://creativecommons.org/ns#",
    "tdm": "http://www.w3.org/ns/tdmrep/",
    "ldm": "urn:open-ldm:xmp:1/",
}
"""The usual prefix of each namespace that is read or written here."""

MAX_PACKET_BYTES = 2**24
"""The largest packet that is parsed."""

_PREFIXES = {uri.rstrip("#/"): prefix for prefix, uri in NAMESPACES.items()}
_RDF = f"{{{NAMESPACES['rdf']}}}"
_ALT = f"{_RDF}Alt"
_ITEMS = (_ALT, f"{_RDF}Bag", f"{_RDF}Seq")
_START = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
_END = '<?xpacket end="r"?>'
_IN_LANGUAGES = ("dc:description", "dc:rights")
"""Properties whose value is a list of languages."""


def xmp_packet(properties: Mapping[str, str]) -> str:
    """A packet with properties named as `prefix:name`; the texts must not contain control characters."""
    prefixes = sorted({name.partition(":")[0] for name in properties})
    spaces = "".join(f' xmlns:{prefix}="{NAMESPACES[prefix]}"' for prefix in prefixes)
    elements = "".join(f"<{name}>{_value(name, text)}</{name}>" for name, text in properties.items())
    rdf = f'<rdf:Description rdf:about=""{spaces}>{elements}</rdf:Description>'
    return (
        f'{_START}<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{NAMESPACES["rdf"]}">{rdf}</rdf:RDF>'
        f"</x:xmpmeta>{_END}"
    )


def _value(name: str, text: str) -> str:
    plain = escape(text)
    return (
        f'<rdf:Alt><rdf:li xml:lang="x-default">{plain}</rdf:li></rdf:Alt>'
        if name in _IN_LANGUAGES
        else plain
    )


def xmp_properties(packet: bytes) -> dict[str, str]:
    """The properties of a packet, named as `prefix:name`; of a list the first item, of a structure nothing.

    A damaged packet has none, nor has one above `MAX_PACKET_BYTES`, one that declares entities, or one in UTF-16, which
    these formats do not allow.
    """
    data = packet.strip(b"\0 \t\r\n")
    if not data or len(data) > MAX_PACKET_BYTES or b"\0" in data or b"<!" in data.replace(b"<!--", b""):
        return {}
    try:
        tree = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError):  # LookupError: an unknown encoding
        return {}
    return dict(pair for node in tree.iter(f"{_RDF}Description") for pair in _properties_of(node))


def _properties_of(node: ElementTree.Element) -> Iterator[tuple[str, str]]:
    """The properties of one description: its attributes, and its elements with a simple value."""
    for key, value in node.attrib.items():
        if not key.startswith(_RDF):
            yield _named(key), value.strip()
    for child in node:
        if (text := _text_of(child)) is not None:
            yield _named(child.tag), text


def _text_of(element: ElementTree.Element) -> str | None:
    while (items := next((each for each in element if each.tag in _ITEMS), None)) is not None:
        first = next(iter(items), None)
        if first is None:
            return None
        element = first
    if len(element):
        return None
    return (element.get(f"{_RDF}resource") or element.text or "").strip()


def _named(key: str) -> str:
    """`{uri}name` as `prefix:name`; a namespace that is unknown here keeps its URI."""
    uri, _, name = key[1:].rpartition("}")
    prefix = _PREFIXES.get(uri.rstrip("#/"))
    return key if prefix is None else f"{prefix}:{name}"
