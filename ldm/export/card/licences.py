"""A licence as the Hub has it: an identifier of its list, or `other` with a name."""

import re

_IDENTIFIERS = (
    "afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0 "
    "bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 "
    "cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 "
    "cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 "
    "cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 "
    "etalab-2.0 eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 "
    "lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail "
    "openrail++ osl-3.0 pddl postgresql unknown unlicense wtfpl zlib"
)
KNOWN = frozenset(_IDENTIFIERS.split())
"""What `license` may be in the front matter; SPDX names are in lower case there."""


def licence_keys(licence: str | None) -> dict[str, str]:
    """`license`; for one that is not on the Hub's list also `license_name` and, of an address, `license_link`."""
    if licence is None or not licence.strip():
        return {"license": "unknown"}
    identifier = licence.strip().lower()
    if identifier in KNOWN:
        return {"license": identifier}
    is_link = re.fullmatch(r"https?://\S+", licence.strip()) is not None
    name = re.sub(r"[^a-z0-9.]+", "-", identifier.removeprefix("https://").removeprefix("http://")).strip(
        "-."
    )
    return {"license": "other", "license_name": name or "other"} | (
        {"license_link": licence.strip()} if is_link else {}
    )
