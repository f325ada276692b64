"""C2PA credentials: a signed statement in an image of how it was made, written and read with the library of C2PA.

Written are the action (made by a model, or an image that was edited with one), the model and its hash, the settings,
and the images that it was made from with the credentials that they have. Nothing is looked up in a network.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from PIL import Image

from ldm.errors import UserError
from ldm.io.image_metadata import ImageFormat, read_metadata
from ldm.io.json_files import parse_json
from ldm.io.png import with_chunks
from ldm.provenance.marks import SOURCE_TYPES, source_type_of
from ldm.provenance.signing_identity import EXTRA, SigningFiles, algorithm_of, local_root, read_pem
from ldm.version import __version__

GENERATION = "open-ldm.generation"
"""Our assertion: the record of the image, without its prompts unless the user wants them in it."""

MIME_TYPES: Mapping[ImageFormat, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

SETTINGS: Mapping[str, Any] = {
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    "builder": {"thumbnail": {"enabled": False}},
}
"""Of the library: nothing is fetched, and no small copies of images are put into credentials."""

UNTRUSTED = ("signingCredential.untrusted", "signingCredential.expired", "timeStamp.untrusted")
"""Findings about the signer rather than the file."""

Relationship = Literal["parentOf", "inputTo"]
"""What an image was to the result: the image that was edited, or something else that the model was given."""


@dataclass(frozen=True)
class Ingredient:
    """An image that another one was made from.

    Attributes:
        title: its name, without a folder.
        data: the bytes of its file, in which its own credentials stand.
    """

    title: str
    data: bytes
    relationship: Relationship


class ImageSigner:
    """Signs images with one key.

    Args:
        with_prompts: whether the statement repeats the prompts.

    Raises:
        UserError: the library is missing, or the key and the certificates cannot sign.
    """

    def __init__(self, files: SigningFiles, *, with_prompts: bool = False) -> None:
        _check_installed()
        self.with_prompts = with_prompts
        self.files = files
        self.key = read_pem(files.key, "private key")
        self.certificates = read_pem(files.certificates, "certificates")
        self.algorithm = algorithm_of(files.key, self.key)
        self.sign(
            with_chunks(Image.new("RGB", (1, 1)), {}), "png", {}
        )  # a fault shows before any work is done

    def sign(
        self,
        data: bytes,
        file_format: ImageFormat,
        record: Mapping[str, Any],
        ingredients: Sequence[Ingredient] = (),
    ) -> bytes:
        """The bytes of an image file with credentials in it.

        Args:
            record: of the image, flat.

        Raises:
            UserError: the certificate does not belong to the key, has expired, or is not one that C2PA accepts.
        """
        import c2pa

        manifest = _manifest(record, ingredients, with_prompts=self.with_prompts)
        signed = io.BytesIO()
        try:
            with (
                c2pa.Context.from_dict(dict(SETTINGS)) as context,
                c2pa.Builder(manifest, context) as builder,
                self._signer() as signer,
            ):
                for number, each in enumerate(ingredients):
                    told = {"title": each.title, "relationship": each.relationship, "label": _label(number)}
                    builder.add_ingredient(told, _mime_type(each.data), io.BytesIO(each.data))
                builder.sign(signer, MIME_TYPES[file_format], io.BytesIO(data), signed)
        except c2pa.C2paError as error:
            raise UserError(
                f"{self.files.certificates} and {self.files.key.name} cannot sign ({error})",
                "use a certificate for C2PA and its key, such as `ldm provenance init` makes",
            ) from None
        return signed.getvalue()

    def _signer(self) -> Any:
        import c2pa

        info = c2pa.C2paSignerInfo(self.algorithm, self.certificates.encode(), self.key.encode(), None)
        return c2pa.Signer.from_info(info)


def _manifest(
    record: Mapping[str, Any], ingredients: Sequence[Ingredient], *, with_prompts: bool
) -> dict[str, Any]:
    """What is signed, as the library takes it."""
    version = str(record.get("ldm_version") or __version__)
    told = {key: value for key, value in record.items() if with_prompts or not _is_prompt(key, value)}
    return {
        "claim_generator_info": [{"name": "OpenLDM", "version": version}],
        "assertions": [
            {"label": "c2pa.actions", "data": {"actions": list(_actions(record, ingredients))}},
            {"label": GENERATION, "kind": "Json", "data": told},
        ],
    }


def _actions(record: Mapping[str, Any], ingredients: Sequence[Ingredient]) -> Iterable[dict[str, Any]]:
    """The image that was edited is opened first; else the image is created."""
    kind = source_type_of(record)
    parents = [_label(n) for n, each in enumerate(ingredients) if each.relationship == "parentOf"]
    others = [_label(n) for n, each in enumerate(ingredients) if each.relationship == "inputTo"]
    if parents:
        yield {"action": "c2pa.opened", "parameters": {"ingredientIds": parents}}
    done = {
        "action": "c2pa.edited" if parents else "c2pa.created",
        "digitalSourceType": SOURCE_TYPES + kind,
        "softwareAgent": {"name": "OpenLDM", "version": str(record.get("ldm_version") or __version__)},
    }
    if model := record.get("model_id"):
        done["description"] = f"model {model}, weights {str(record.get('weights_hash'))[:10]}"
    yield done | ({"parameters": {"ingredientIds": others}} if others else {})


def _is_prompt(key: str, value: Any) -> bool:
    return "prompt" in key and isinstance(value, str) and key != "prompt_weights"


def _label(number: int) -> str:
    return f"image-{number + 1}"


def _mime_type(data: bytes) -> str:
    found = read_metadata(data).format
    return MIME_TYPES[found] if found else ""


@dataclass(frozen=True)
class Credentials:
    """What the credentials in a file say, and whether they hold.

    Attributes:
        signer: the organisation in the certificate.
        trusted: whether the certificate leads to a root that was given, or to that of the local identity.
        faults: C2PA's codes of what does not agree with the signature, such as "assertion.dataHash.mismatch".
        source_type: IPTC's word for how the image was made, from the last action that says it.
        generator: the program.
        generation: our assertion, or None.
        ingredients: of the images that it was made from.
    """

    signer: str | None
    trusted: bool
    faults: tuple[str, ...]
    source_type: str
    generator: str
    generation: Mapping[str, Any] | None
    ingredients: tuple["IngredientFacts", ...]

    @property
    def tampered(self) -> bool:
        """Whether the file is not what was signed."""
        return bool(self.faults)


@dataclass(frozen=True)
class IngredientFacts:
    """What credentials say of an image that theirs was made from.

    Attributes:
        signer: who signed that image; None if nobody did.
        intact: whether it was what its own credentials say when it was used.
    """

    title: str
    relationship: str
    signer: str | None
    intact: bool


def read_credentials(data: bytes, roots: Sequence[str] = ()) -> Credentials | None:
    """The credentials in the bytes of a file, or None if it has none.

    Args:
        roots: certificates in PEM that are trusted, besides that of the local identity.

    Raises:
        UserError: the library is missing, or the credentials cannot be read.
    """
    _check_installed()
    import c2pa

    trusted = [*roots, *filter(None, [local_root()])]
    settings = dict(SETTINGS) | ({"trust": {"user_anchors": "\n".join(trusted)}} if trusted else {})
    try:
        with c2pa.Context.from_dict(settings) as context:
            reader = c2pa.Reader.try_create(_mime_type(data) or None, io.BytesIO(data), context=context)
            if reader is None:
                return None
            with reader:
                store = parse_json(reader.json())
    except (c2pa.C2paError, ValueError) as error:
        raise UserError("its C2PA credentials cannot be read", _one_line(error)) from None
    return _Store(store).credentials


class _Store:
    """The manifests of a file, as the library reports them."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self.manifests: Mapping[str, Any] = tree.get("manifests") or {}
        self.active: Mapping[str, Any] = self.manifests.get(str(tree.get("active_manifest"))) or {}
        self.results: Mapping[str, Any] = tree.get("validation_results") or {}

    @cached_property
    def codes(self) -> tuple[str, ...]:
        """The codes of what is wrong with the newest manifest."""
        failures = (self.results.get("activeManifest") or {}).get("failure") or []
        return tuple(dict.fromkeys(str(each.get("code")) for each in failures))

    @property
    def credentials(self) -> Credentials:
        info = self.active.get("signature_info") or {}
        made_by = (self.active.get("claim_generator_info") or [{}])[0]
        name = info.get("issuer") or info.get("common_name")
        return Credentials(
            signer=str(name) if name else None,
            trusted=not any(code in UNTRUSTED for code in self.codes),
            faults=tuple(code for code in self.codes if code not in UNTRUSTED),
            source_type=self._source_type(),
            generator=" ".join(str(made_by[key]) for key in ("name", "version") if made_by.get(key)),
            generation=self._assertion(GENERATION),
            ingredients=tuple(map(self._ingredient, self.active.get("ingredients") or [])),
        )

    def _assertion(self, label: str) -> Mapping[str, Any] | None:
        found = (
            each.get("data") for each in self.active.get("assertions") or [] if each.get("label") == label
        )
        return next((data for data in found if isinstance(data, Mapping)), None)

    def _source_type(self) -> str:
        actions: Mapping[str, Any] = (
            self._assertion("c2pa.actions.v2") or self._assertion("c2pa.actions") or {}
        )
        kinds = [each.get("digitalSourceType") for each in actions.get("actions") or []]
        return next((str(kind).removeprefix(SOURCE_TYPES) for kind in reversed(kinds) if kind), "")

    def _ingredient(self, ingredient: Mapping[str, Any]) -> IngredientFacts:
        """Failures that the ingredient has by itself were noted when it was added."""
        own: Mapping[str, Any] = self.manifests.get(str(ingredient.get("active_manifest"))) or {}
        info = own.get("signature_info") or {}
        results = (ingredient.get("validation_results") or {}).get("activeManifest") or {}
        codes = [str(each.get("code")) for each in results.get("failure") or []]
        name = info.get("issuer") or info.get("common_name")
        return IngredientFacts(
            title=str(ingredient.get("title") or "an image"),
            relationship=str(ingredient.get("relationship") or ""),
            signer=str(name) if name else None,
            intact=all(code in UNTRUSTED for code in codes),
        )


def is_installed() -> bool:
    """Whether the library of C2PA can be loaded here."""
    try:
        import c2pa  # noqa: F401
    except (ImportError, OSError):  # OSError: its native part is for another system
        return False
    return True


def _check_installed() -> None:
    if not is_installed():
        raise UserError("C2PA credentials need the package c2pa-python", EXTRA)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
