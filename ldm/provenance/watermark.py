"""An invisible watermark in the phases of an image's spectrum, which says which model and which image it is.

The luminance, scaled to SIDE x SIDE pixels whatever the image's size, has a Fourier coefficient X_f at each frequency.
A key assigns to each frequency f of a band a phase phi_f and one of 1 + NUM_BITS groups. Of a group g with n of them,

    z_g = sqrt(2 / n) sum_f cos(arg X_f - phi_f)

is what the detector reads: the pilot's z says whether there is a watermark, the sign of each other z is a bit. If the
image knows nothing of the key, each cosine has mean 0 and variance 1/2, whatever the image: z is standard normal. This
is spread-spectrum watermarking (Cox et al. 1997, doi:10.1109/83.650120) on phases (O Ruanaidh et al. 1996), informed as
in Malvar and Florencio (2003, doi:10.1109/TSP.2003.809385): a group that agrees already is left alone.

Cut and turned images are found by searching: the pilot is correlated at all shifts with one Fourier transform.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from ldm.errors import UserError, warn

Floats = npt.NDArray[np.float64]
Complex = npt.NDArray[np.complex128]

MIN_SIDE_PX = 256
MIN_DETECTED_PX = 96
"""Smaller images than those that can be marked are looked at, too: they may have been shrunk."""
SIDE = 256
MODEL_BITS, IMAGE_BITS, CHECK_BITS = 14, 16, 10
NUM_BITS = MODEL_BITS + IMAGE_BITS + CHECK_BITS

BAND = (6.0, 60.0)
"""The frequencies that are used, in periods per image: lower ones are seen, higher ones do not survive."""
PILOT_SHARE = 0.3
"""The part of the frequencies, all over the band, that belongs to the pilot."""
PILOT_Z, BIT_Z = 9.0, 1.4
"""What embedding brings each z to."""

NOISE_GREY = 6.0
"""The noise that the watermark is made for, as its standard deviation in levels of 255."""
LEAST_CONTRAST = 2.0
"""The standard deviation of what is added, in levels: in smooth images, less would do until the first JPEG."""

THRESHOLD = 6.0
"""The pilot's z from which an image counts as marked: by the normal distribution, 1e-9 of unmarked images have it."""
SEARCH_THRESHOLD = 7.0
"""The same where many positions are tried."""
MAX_TURN_DEG, TURN_STEP_DEG = 10.0, 0.5
LEAST_CROP, CROP_STEP = 0.7, 0.01

KEY = b"open-ldm watermark 1"
"""Public: everyone may detect the watermark. Whoever knows it can remove it, too."""


@dataclass(frozen=True)
class Payload:
    """What a watermark says.

    Attributes:
        model: the beginning of the hash of the model's weights, MODEL_BITS bits.
        image: an id of the image, IMAGE_BITS bits.
    """

    model: int
    image: int

    def bits(self) -> list[int]:
        """NUM_BITS bits, the checksum last."""
        told = (self.model << IMAGE_BITS) | self.image
        return _bits(told, MODEL_BITS + IMAGE_BITS) + _bits(_checksum(told), CHECK_BITS)

    @staticmethod
    def from_bits(bits: list[int]) -> "Payload | None":
        """None if the checksum is wrong."""
        number = int("".join(map(str, bits)), 2)
        told, check = number >> CHECK_BITS, number % (1 << CHECK_BITS)
        return Payload(told >> IMAGE_BITS, told % (1 << IMAGE_BITS)) if check == _checksum(told) else None


NOT_THE_IMAGE = frozenset({
    "versions", "ldm_version", "record_version", "engine", "dtype", "compiled", "model_parts", "decoded_in_tiles",
    "encoded_in_tiles", "redacted",
})  # fmt: skip
"""Parts of a record that the id of an image does not depend on."""


def payload_of(record: Mapping[str, Any]) -> Payload:
    """What the watermark of an image with this flat record says."""
    named = {key: value for key, value in record.items() if key not in NOT_THE_IMAGE}
    digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).digest()
    return Payload(model_bits(record.get("weights_hash")), int.from_bytes(digest[:2], "big"))


def model_bits(weights_hash: object) -> int:
    """What a watermark says of a model, the beginning of its hash; 0 for one without a hash."""
    begin = weights_hash[:4] if isinstance(weights_hash, str) else ""
    return int(begin, 16) >> (16 - MODEL_BITS) if re.fullmatch("[0-9a-f]{4}", begin) else 0


@dataclass(frozen=True)
class Detection:
    """What the detector found.

    Attributes:
        z: the pilot's, standard normal for unmarked images; with a search, the largest of all positions.
        payload: None if there is no watermark, or if its checksum is wrong.
        turned_deg: how far the image had been turned, and `crop` which part of each side is left.
    """

    z: float
    found: bool
    payload: Payload | None
    turned_deg: float = 0.0
    crop: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON; the ids in hexadecimal."""
        payload = self.payload
        return {
            "found": self.found,
            "z": round(self.z, 2),
            "model": None if payload is None else f"{payload.model:04x}",
            "image": None if payload is None else f"{payload.image:04x}",
        }


@dataclass(frozen=True)
class _Groups:
    """The key's choice: for each frequency of the band its place, phase and group; group 0 is the pilot.

    Attributes:
        rows, columns: of the coefficients in a Fourier transform [SIDE, SIDE], one of each conjugate pair.
        radius: of each frequency, in periods per image.
    """

    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]
    phases: Floats
    group: npt.NDArray[np.int64]
    radius: Floats

    def members(self, number: int) -> npt.NDArray[np.int64]:
        found: npt.NDArray[np.int64] = np.flatnonzero(self.group == number)
        return found


@cache
def groups(key: bytes = KEY) -> _Groups:
    """The frequencies of a key. Every group is spread over the whole band."""
    seed = int.from_bytes(hashlib.sha256(key).digest()[:16], "big")
    generator = np.random.Generator(np.random.PCG64(seed))
    v, u = np.meshgrid(np.fft.fftfreq(SIDE, 1 / SIDE), np.arange(SIDE // 2), indexing="ij")
    radius = np.hypot(u, v)
    rows, columns = np.nonzero((radius >= BAND[0]) & (radius <= BAND[1]) & ((u > 0) | (v > 0)))
    count = len(rows)
    phases = generator.uniform(-math.pi, math.pi, count)
    group = np.zeros(count, np.int64)
    order = generator.permutation(count)[int(PILOT_SHARE * count) :]
    group[order] = 1 + np.arange(len(order)) % NUM_BITS
    return _Groups(rows, columns, phases, group, radius[rows, columns])


def embed(image: Image.Image, payload: Payload) -> Image.Image:
    """The image with a watermark, RGB of the same size.

    Raises:
        UserError: a side is below MIN_SIDE_PX.

    Warns:
        LdmWarning: the detector does not read it, as in noise of black and white.
    """
    check_size(image.width, image.height)
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    luminance, strength = _luminance(pixels), 1.0
    for _ in range(8):  # scaling and rounding lose a little
        residual = _residual(luminance, payload, strength, image.size)
        contrast = float(np.sqrt(np.mean(residual**2)))
        marked = _rounded(pixels, residual * max(1.0, LEAST_CONTRAST / max(contrast, 1e-6)))
        z = _all_z(_spectrum(_scaled(_luminance(np.asarray(marked, dtype=np.float64)))))
        if _least_margin(z, payload) >= 0.9:
            break
        strength *= 1.12
    if z[0] < THRESHOLD or _payload(z) != payload:
        warn("the watermark cannot be read in this image: too many of its pixels are black or white")
    return marked


def check_size(width: int, height: int) -> None:
    """Raises UserError if an image is too small for a watermark."""
    if min(width, height) < MIN_SIDE_PX:
        what = f"a watermark needs {MIN_SIDE_PX} x {MIN_SIDE_PX} pixels, and the image has {width} x {height}"
        raise UserError(what, "make it larger, or leave out --watermark")


def detect(image: Image.Image, *, search: bool = True, key: bytes = KEY) -> Detection:
    """Whether an image has a watermark, and what it says.

    Args:
        search: also look for images that were cut or turned, which takes about a second.
    """
    luminance = _luminance(np.asarray(image.convert("RGB"), dtype=np.float64))
    spectrum = _spectrum(_scaled(luminance))
    z = _all_z(spectrum, key)
    if z[0] >= THRESHOLD or not search:
        return Detection(float(z[0]), bool(z[0] >= THRESHOLD), _payload(z) if z[0] >= THRESHOLD else None)
    best = max(_tried(luminance, key), key=lambda each: each[0])
    if best[0] < SEARCH_THRESHOLD:
        return Detection(best[0], False, None)
    return Detection(best[0], True, _payload(_all_z(best[1], key)), best[2], best[3])


def _bits(number: int, count: int) -> list[int]:
    return [number >> place & 1 for place in reversed(range(count))]


def _checksum(told: int) -> int:
    return int.from_bytes(hashlib.sha256(told.to_bytes(4, "big")).digest()[:2], "big") >> (16 - CHECK_BITS)


def _payload(z: Floats) -> Payload | None:
    return Payload.from_bits([int(each > 0) for each in z[1:]])


def _luminance(pixels: Floats) -> Floats:
    """[H, W, 3] -> [H, W], by BT.601."""
    return cast(Floats, pixels @ np.array([0.299, 0.587, 0.114]))


def _scaled(luminance: Floats, size: tuple[int, int] = (SIDE, SIDE)) -> Floats:
    """Scaled to a width and height, antialiased."""
    image = Image.fromarray(luminance.astype(np.float32))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS), dtype=np.float64)


@cache
def _window() -> Floats:
    """Fades out towards the sides, where a Fourier transform sees a jump."""
    ramp = np.minimum(1.0, (np.arange(SIDE) + 0.5) / 12)
    side = np.sin(np.minimum(ramp, ramp[::-1]) * math.pi / 2) ** 2
    return cast(Floats, np.outer(side, side))


def _spectrum(scaled: Floats) -> Complex:
    return np.fft.fft2((scaled - scaled.mean()) * _window())


def _all_z(spectrum: Complex, key: bytes = KEY) -> Floats:
    """z of the pilot and of each bit."""
    chosen = groups(key)
    cosines = np.cos(np.angle(spectrum[chosen.rows, chosen.columns]) - chosen.phases)
    counts = np.bincount(chosen.group, minlength=NUM_BITS + 1)
    return cast(Floats, np.bincount(chosen.group, cosines, NUM_BITS + 1) * np.sqrt(2 / counts))


def _targets(payload: Payload) -> Floats:
    return np.array([PILOT_Z, *(BIT_Z if bit else -BIT_Z for bit in payload.bits())])


def _least_margin(z: Floats, payload: Payload) -> float:
    """The least part of its target that a group reaches."""
    return float((z / _targets(payload)).min())


def _residual(luminance: Floats, payload: Payload, strength: float, size: tuple[int, int]) -> Floats:
    """What is added to the luminance: [H, W] for a width and height."""
    chosen = groups()
    spectrum = _spectrum(_scaled(luminance))[chosen.rows, chosen.columns]
    added = np.zeros((SIDE, SIDE), np.complex128)
    for number, target in enumerate(_targets(payload) * strength):
        members = chosen.members(number)
        sign = math.copysign(1, target)
        wave = _cheapest(spectrum[members], chosen.phases[members], sign)
        share = _least_share(spectrum[members], wave, abs(target), sign, chosen.phases[members])
        added[chosen.rows[members], chosen.columns[members]] = share * wave
        added[-chosen.rows[members], -chosen.columns[members]] = np.conj(share * wave)
    pattern = np.fft.ifft2(added).real
    return _scaled(pattern, size)


def _cheapest(spectrum: Complex, phases: Floats, sign: float) -> Complex:
    """The wave that raises a group's z most for its energy, where noise of NOISE_GREY levels is to be survived.

    The slope of cos(arg X - phi) as an amplitude m is added at phase phi is sin^2 / |X|; noise adds to |X|.
    """
    floor = NOISE_GREY * SIDE
    slope = np.sin(np.angle(spectrum) - phases) ** 2 * floor**2 / np.hypot(np.abs(spectrum), floor)
    return cast(Complex, sign * slope * np.exp(1j * phases))


def _least_share(spectrum: Complex, wave: Complex, target: float, sign: float, phases: Floats) -> float:
    """How much of a wave must be added for a group's z to reach its target in noise of one level; 0 if it has it."""
    low, high = 0.0, 64.0

    def z(share: float) -> float:
        changed = spectrum + share * wave
        cosines = (changed * np.exp(-1j * phases)).real / np.hypot(np.abs(changed), SIDE)
        return float(sign * cosines.sum() * math.sqrt(2 / len(phases)))

    if z(0.0) >= target:
        return 0.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if z(middle) < target else (low, middle)
    return high


def _rounded(pixels: Floats, residual: Floats) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels + residual[..., None]), 0, 255).astype(np.uint8))


def _tried(luminance: Floats, key: bytes) -> Iterator[tuple[float, Complex, float, float]]:
    """The pilot's largest z for each turn and crop, with the spectrum in that position."""
    height, width = luminance.shape
    scale = SIDE / min(height, width)
    small = Image.fromarray(
        _scaled(luminance, (round(width * scale), round(height * scale))).astype(np.float32)
    )
    mean = float(luminance.mean())
    for step in range(1, round(MAX_TURN_DEG / TURN_STEP_DEG) + 1):
        for degrees in (step * TURN_STEP_DEG, -step * TURN_STEP_DEG):
            turned = small.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=mean)
            scaled = _scaled(np.asarray(turned, dtype=np.float64))
            yield (*_best_shift(scaled, 4, key), -degrees, 1.0)
    for step in range(1, round((1 - LEAST_CROP) / CROP_STEP) + 1):
        crop = 1 - step * CROP_STEP
        inner = round(SIDE * crop)
        canvas = np.full((SIDE, SIDE), mean)
        begin = (SIDE - inner) // 2
        canvas[begin : begin + inner, begin : begin + inner] = _scaled(luminance, (inner, inner))
        yield (*_best_shift(canvas, begin + 2, key), 0.0, crop)


def _best_shift(scaled: Floats, most: int, key: bytes) -> tuple[float, Complex]:
    """The pilot's largest z over all shifts of at most `most` pixels, and the spectrum shifted back."""
    chosen = groups(key)
    pilot = chosen.members(0)
    rows, columns = chosen.rows[pilot], chosen.columns[pilot]
    spectrum = _spectrum(scaled)
    values = spectrum[rows, columns]
    turned = np.zeros((SIDE, SIDE), np.complex128)
    turned[rows, columns] = values / np.maximum(np.abs(values), 1e-12) * np.exp(-1j * chosen.phases[pilot])
    z = np.fft.ifft2(turned).real * (SIDE * SIDE) * math.sqrt(2 / len(pilot))
    window = np.arange(-most, most + 1)
    near = z[np.ix_(window, window)]
    down, right = (int(each) for each in np.unravel_index(int(near.argmax()), near.shape))
    shift_v, shift_u = window[down], window[right]
    frequencies = np.fft.fftfreq(SIDE)
    back = np.exp(2j * math.pi * (frequencies[:, None] * shift_v + frequencies[None, :] * shift_u))
    return float(near.max()), cast(Complex, spectrum * back)
