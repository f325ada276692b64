"""An identity to sign images with: a private key, and certificates that say whose it is.

A local identity vouches for itself: whoever trusts its root certificate knows that images come from the holder of the
key. A certificate of an authority on C2PA's list is used in the same way, and is trusted by everyone.
"""

import os
import stat
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ldm.errors import UserError, warn
from ldm.io.files import write_bytes, write_private
from ldm.io.opening import read_bytes

KEY, CERTIFICATES, ROOT = "key.pem", "certificates.pem", "root.pem"
"""The files of a local identity: the private key, the certificate that images carry, the root that others may trust."""

EXTRA = "pip install c2pa-python cryptography"
"""What to do if a package for signing is missing."""

VALID_FOR = timedelta(days=3650)
MAX_PEM_BYTES = 2**20
MAX_NAME_LENGTH = 64
"""Of a name in a certificate: RFC 5280, appendix A.1."""

ALGORITHMS = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
"""C2PA's name of the signature of a key on each curve."""


@dataclass(frozen=True)
class SigningFiles:
    """What images are signed with, as files in PEM.

    Attributes:
        certificates: that of the key first, then those of its issuers, without the root.
    """

    key: Path
    certificates: Path


def identity_folder() -> Path:
    """Where the local identity is: $LDM_IDENTITY_DIR, else in the user's folder of settings."""
    if given := os.environ.get("LDM_IDENTITY_DIR"):
        return Path(given).expanduser()
    settings = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(settings) / "open-ldm" / "identity"


def local_identity() -> SigningFiles:
    """The files of the local identity.

    Raises:
        UserError: there is none.
    """
    files = SigningFiles(identity_folder() / KEY, identity_folder() / CERTIFICATES)
    if not files.key.is_file() or not files.certificates.is_file():
        raise UserError(
            f"{identity_folder()}: no identity to sign with",
            "make one with `ldm provenance init`, or give --sign-key and --sign-certificate",
        )
    return files


def local_root() -> str | None:
    """The root certificate of the local identity in PEM, or None if there is no identity."""
    try:
        return read_bytes(identity_folder() / ROOT, MAX_PEM_BYTES).decode("ascii")
    except (OSError, UnicodeDecodeError):
        return None


def make_identity(name: str, folder: Path) -> None:
    """Make a key of ES256 and certificates for it that C2PA accepts, and write them into a folder.

    The root's own key is not kept, so that nobody can make further certificates of it.

    Raises:
        UserError: the name is empty or too long, the folder has an identity, or it cannot be written.
    """
    _check_installed()
    if not name.strip() or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise UserError(
            f"the name {name!r} cannot stand in a certificate", f"use 1 to {MAX_NAME_LENGTH} letters"
        )
    taken = [folder / file for file in (KEY, CERTIFICATES, ROOT) if os.path.lexists(folder / file)]
    if taken:
        raise UserError(
            f"{taken[0]} exists already", "keep it, or give another --folder: a key is never replaced"
        )
    key, certificate, root = _certified(name.strip())
    write_private(folder / KEY, key)
    write_bytes(folder / CERTIFICATES, certificate)
    write_bytes(folder / ROOT, root)


def _certified(name: str) -> tuple[bytes, bytes, bytes]:
    """A private key, its certificate and the root's, in PEM."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key, root_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root_name, own_name = _name_of(f"{name[:40]} (own root)", name), _name_of(name, name)
    root = _certificate(root_name, root_key.public_key(), root_name, root_key, is_root=True)
    own = _certificate(own_name, key.public_key(), root_name, root_key, is_root=False)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private, own.public_bytes(Encoding.PEM), root.public_bytes(Encoding.PEM)


def _name_of(common_name: str, organisation: str) -> Any:
    """C2PA's readers name the organisation as the signer."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
        x509.NameAttribute(NameOID.COMMON_NAME, common_name),
    ])  # fmt: skip


def _certificate(subject: Any, public_key: Any, issuer: Any, issuer_key: Any, *, is_root: bool) -> Any:
    """A certificate as C2PA 2.2, section 14.5.1, asks for: usage for e-mail or documents, key identifiers."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID

    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + VALID_FOR)
        .add_extension(x509.BasicConstraints(is_root, 0 if is_root else None), critical=True)
        .add_extension(_key_usage(signs_certificates=is_root), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    )
    if not is_root:
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(usage, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _key_usage(*, signs_certificates: bool) -> Any:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def read_pem(path: Path, what: str) -> str:
    """A key or certificates in PEM.

    Raises:
        UserError: the file cannot be read, or is not PEM.
    """
    try:
        text = read_bytes(path, MAX_PEM_BYTES).decode("ascii")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", f"name a file with the {what} in PEM") from None
    except UnicodeDecodeError:
        text = ""
    if "-----BEGIN " not in text:
        raise UserError(f"{path} is not the {what} in PEM", "convert it with openssl")
    return text


def algorithm_of(path: Path, key: str) -> str:
    """What C2PA calls the signature of a private key, such as `es256`.

    Raises:
        UserError: it is encrypted, damaged, or of a kind that C2PA does not use.

    Warns:
        LdmWarning: others on this computer may read it.
    """
    _check_installed()
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        loaded = load_pem_private_key(key.encode(), None)
    except TypeError:
        raise UserError(f"{path} is encrypted", "decrypt it with `openssl pkey`") from None
    except Exception as error:  # many kinds on damaged data
        raise UserError(f"{path} is not a private key ({error})", "name the key of the certificate") from None
    if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        warn(f"{path}: others on this computer may read this key; change that with chmod 600")
    if isinstance(loaded, ec.EllipticCurvePrivateKey) and loaded.curve.name in ALGORITHMS:
        return ALGORITHMS[loaded.curve.name]
    if isinstance(loaded, rsa.RSAPrivateKey):
        return "ps256"
    if isinstance(loaded, ed25519.Ed25519PrivateKey):
        return "ed25519"
    raise UserError(
        f"{path}: not a kind of key that C2PA uses", "use one of ES256, as `ldm provenance init` makes"
    )


def _check_installed() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise UserError("keys need the package cryptography", EXTRA) from None
