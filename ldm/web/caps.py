"""What one client may ask of the server: sizes, steps, images, the length of the queue, bytes and time."""

from collections.abc import Collection
from dataclasses import dataclass

from ldm.errors import UserError
from ldm.models.generation_settings import GenerationSettings

MIB = 2**20


@dataclass(frozen=True)
class Caps:
    """The largest values that are accepted.

    Attributes:
        side_px: of an image that is made.
        steps: sampling steps of an image.
        images: of one request.
        reach_px: of the settings that look at neighbouring pixels, whose time grows with its square.
        letters: of a prompt.
        waiting: unfinished requests of all clients together.
        waiting_each: unfinished requests of one client.
        request_bytes: of one request.
        arriving_bytes: of all requests that are being received.
        held_bytes: of the images given with all requests that wait.
        upload_pixels: of an image given.
        sheet_pixels: of the images that are put side by side.
        kept_jobs, kept_bytes: finished images that stay available; the oldest are dropped.
        requests_per_sec: of one address, after `burst` at once.
        wrong_tokens: of one address in a minute.
        body_sec: in which a request must have arrived.
    """

    side_px: int = 2048
    steps: int = 250
    images: int = 64
    reach_px: int = 64
    letters: int = 10_000
    waiting: int = 100
    waiting_each: int = 20
    request_bytes: int = 32 * MIB
    arriving_bytes: int = 256 * MIB
    held_bytes: int = 1024 * MIB
    upload_pixels: int = 16_777_216
    sheet_pixels: int = 67_108_864
    kept_jobs: int = 200
    kept_bytes: int = 256 * MIB
    requests_per_sec: float = 30.0
    burst: int = 150
    wrong_tokens: int = 10
    body_sec: float = 30.0

    def check_asked(self, prompt: str, settings: GenerationSettings) -> None:
        """Check what a client has given, before anything is computed from it.

        Raises:
            UserError: the first value that is too large.
        """
        given = settings.given()
        for name, text in {"prompt": prompt, **given}.items():
            if isinstance(text, str) and len(text) > self.letters:
                raise UserError(f"{name} has {len(text):,} characters", f"give at most {self.letters:,}")
        goes = given.get("to_prompt") or given.get("to_seed", -1) >= 0
        frames = settings.num_frames if goes and not settings.frame else 1
        self.check_count(settings.num_images * frames)
        self.check_settings(settings, given)

    def check_count(self, num_images: int) -> None:
        """Check the number of images of a request.

        Raises:
            UserError: there are too many.
        """
        if num_images > self.images:
            what = f"the request is for {num_images:,} images"
            raise UserError(what, f"ask for at most {self.images} at once with num_images")

    def check_settings(self, settings: GenerationSettings, names: Collection[str] | None = None) -> None:
        """Check the settings of an image.

        Args:
            names: of those to check; by default all.

        Raises:
            UserError: the first one that is too large.
        """
        reach = dict.fromkeys(("expand_overlap", "mask_feather"), self.reach_px)
        most = {"height": self.side_px, "width": self.side_px, "num_inference_steps": self.steps, **reach}
        for name, largest in most.items():
            value = getattr(settings, name)
            if value > largest and (names is None or name in names):
                raise UserError(f"{name} is {value}", f"this server makes at most {largest}")
        if settings.tile_size and 2 * settings.tile_overlap > settings.tile_size:
            what = f"tile_overlap is {settings.tile_overlap}"
            raise UserError(what, f"give at most {settings.tile_size // 2}, half of tile_size")
