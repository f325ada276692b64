"""The interface of A1111's web UI below `/sdapi/v1`, as far as its clients need it for making images.

Requests for anything that is not offered here are refused. Where the result differs only a little from A1111's, it is
made all the same, and the answer's `info` has a warning.
"""

import base64
import json
import re
import secrets
from collections.abc import Mapping
from typing import Any

from PIL import Image, ImageOps
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ldm.diffusion.scheduler_names import OWN_SCHEDULER, SCHEDULERS
from ldm.errors import UserError, unknown_name
from ldm.pipeline.record import infotext
from ldm.web.form import read_settings, read_weights
from ldm.web.own_api import json_object, read_record, service_of
from ldm.web.queue import Job
from ldm.web.served_model import ServedModel
from ldm.web.service import RANDOM_SEEDS, Asked, Service, client_of, text_of
from ldm.web.uploads import from_base64

SETTINGS = {
    "negative_prompt": "negative_prompt",
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "width": "width",
    "height": "height",
    "s_churn": "churn",
}
"""A1111's names of settings, and ours."""

NOT_OFFERED: Mapping[str, tuple[Any, ...]] = {
    "enable_hr": (False,),
    "tiling": (False,),
    "restore_faces": (False,),
    "save_images": (False,),
    "styles": ([],),
    "subseed_strength": (0,),
    "script_name": ("",),
    "refiner_checkpoint": ("",),
    "s_tmin": (0,),
    "initial_noise_multiplier": (1,),
    "s_noise": (1,),
}
"""Fields that would ask for something that is not offered, with the values that ask for nothing."""

IGNORED = frozenset({
    "prompt", "seed", "batch_size", "n_iter", "sampler_name", "sampler_index", "scheduler", "override_settings",
    "override_settings_restore_afterwards", "alwayson_scripts", "send_images", "script_args", "subseed",
    "seed_resize_from_h", "seed_resize_from_w", "do_not_save_samples", "do_not_save_grid", "eta", "s_tmax",
    "firstphase_width", "firstphase_height", "hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x",
    "hr_resize_y", "hr_checkpoint_name", "hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt",
    "denoising_strength", "init_images", "mask", "mask_blur", "inpainting_fill", "inpaint_full_res",
    "inpaint_full_res_padding", "inpainting_mask_invert", "resize_mode", "image_cfg_scale", "include_init_images",
    "refiner_switch_at", "disable_extra_networks", "force_task_id", "infotext", "comments", "mask_blur_x",
    "mask_blur_y", "mask_round", "latent_mask", "firstpass_image",
})  # fmt: skip
"""Fields that are read elsewhere in this module, or that mean nothing without those of `NOT_OFFERED`."""

_LORA = re.compile(r"<lora:(?P<name>[^:>]+):(?P<weight>-?\d+(\.\d+)?|-?\.\d+)>")
_WEIGHTED = re.compile(r"[()\[\]]|\bBREAK\b|\bAND\b")
"""Prompts of A1111 that are more than plain text."""

KARRAS, LEFT_OPEN = "karras", ("", "automatic")
STRETCH, CROP = 0, 1
"""How an image of another shape is fitted, as `resize_mode` has it."""


async def txt2img(request: Request) -> Response:
    """Images from a prompt."""
    service, given = service_of(request), await json_object(request)
    settings, warnings = read_common(service, given)
    model = read_model(service, client_of(request), given)
    prompt, weights = read_loras(model, text_of(given, "prompt"))
    asked = Asked(prompt, read_settings(settings, service.kind), lora_weights=weights, model=model)
    return await answered(request, service, asked, given, warnings)


async def img2img(request: Request) -> Response:
    """Images from an image, with a mask or without."""
    service, given = service_of(request), await json_object(request)
    settings, warnings = read_common(service, given)
    model = read_model(service, client_of(request), given)
    asked = await run_in_threadpool(_from_image, service, model, given, settings, warnings)
    return await answered(request, service, asked, given, warnings)


def read_common(service: Service, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The settings that both have, under our names, and what had no effect.

    Raises:
        UserError: the request needs something that is not offered here.
    """
    for name, harmless in NOT_OFFERED.items():
        if given.get(name) not in (None, *harmless):
            raise UserError(f"{name} is {given[name]!r:.40}", f"it is not offered here: leave {name} out")
    _check_scripts(given.get("alwayson_scripts"))
    overridden = _overridden(given)
    unknown = [name for name in given if name not in {*IGNORED, *SETTINGS, *NOT_OFFERED}]
    unknown += [f"override_settings.{name}" for name in overridden if name != "sd_model_checkpoint"]
    warnings = [f"{name[:60]} has no effect here" for name in unknown[:20]]
    named = {ours: given[theirs] for theirs, ours in SETTINGS.items() if given.get(theirs) is not None}
    if not named.get("churn"):
        named.pop("churn", None)
    seed = given.get("seed")
    named["seed"] = secrets.randbelow(RANDOM_SEEDS) if seed in (None, -1) else seed
    named["num_images"] = _count(given, "batch_size") * _count(given, "n_iter")
    if any(_WEIGHTED.search(text_of(given, name)) for name in ("prompt", "negative_prompt")):
        named["prompt_weights"] = "a1111"
    return {**named, **read_sampler(given)}, warnings


def _overridden(given: Mapping[str, Any]) -> Mapping[str, Any]:
    found = given.get("override_settings") or {}
    if not isinstance(found, Mapping):
        raise UserError("override_settings is not an object", "leave it out")
    return found


def read_model(service: Service, client: str, given: Mapping[str, Any]) -> ServedModel:
    """The model for a request: the one that it names, or that the client has chosen before.

    As in A1111, a named one stays chosen if `override_settings_restore_afterwards` is false.

    Raises:
        NotFound: it is not served here.
    """
    name = _overridden(given).get("sd_model_checkpoint")
    if name is None:
        return service.chosen_by(client)
    model = service.find_model(name)
    if given.get("override_settings_restore_afterwards") is False:
        service.choose(client, model)
    return model


def read_loras(model: ServedModel, prompt: str) -> tuple[str, tuple[float, ...] | None]:
    """A prompt without its `<lora:NAME:WEIGHT>`, and the weights that they give; LoRAs that are not named get 0.

    Raises:
        UserError: a LoRA is not one of the model's here, or its weight is too large.
    """
    named = {match["name"]: match["weight"] for match in _LORA.finditer(prompt)}
    if not named:
        return prompt, None
    known = [lora.name for lora in model.loras]
    if unknown := next((name for name in named if name not in known), None):
        raise unknown_name("LoRA", unknown, known or ["none"])
    weights = [float(named.get(name, 0)) for name in known]
    return _LORA.sub("", prompt).strip(), read_weights(weights)


def _check_scripts(scripts: Any) -> None:
    """Refuse extensions that would do something; clients send those that are switched off, too."""
    for name, script in (scripts or {}).items() if isinstance(scripts, Mapping | None) else [("", True)]:
        arguments = script.get("args") if isinstance(script, Mapping) else script
        if arguments and arguments not in ([False], [{}]):
            raise UserError(
                f"alwayson_scripts has {name!r:.60}", "there are no extensions here: leave it out"
            )


def _count(given: Mapping[str, Any], name: str) -> int:
    value = given.get(name)
    if value is None:
        return 1
    if type(value) is not int or not 1 <= value <= 1_000_000:
        raise UserError(f"{name} is {value!r:.40}", "it must be a whole number of at least 1")
    return value


def read_sampler(given: Mapping[str, Any]) -> dict[str, Any]:
    """The sampler, by its name in A1111 or here, and whether its noise levels are spaced as Karras et al. do.

    Raises:
        UserError: there is no such sampler or spacing here.
    """
    name = str(given.get("sampler_name") or given.get("sampler_index") or "")
    spacing = str(given.get("scheduler") or "").lower()
    if name.lower().endswith(f" {KARRAS}"):
        name, spacing = name[: -len(KARRAS) - 1], KARRAS
    if spacing not in (KARRAS, *LEFT_OPEN):
        raise unknown_name("scheduler", spacing, ["automatic", KARRAS])
    karras = {"karras": True} if spacing == KARRAS else {}
    if not name:
        return karras
    named = {entry.title.lower(): short for short, entry in SCHEDULERS.items()}
    known = {**named, **{short: short for short in (OWN_SCHEDULER, *SCHEDULERS)}}
    if name.lower() not in known:
        raise unknown_name("sampler_name", name, [entry.title for entry in SCHEDULERS.values()])
    return {"scheduler": known[name.lower()], **karras}


def _from_image(
    service: Service,
    model: ServedModel,
    given: Mapping[str, Any],
    settings: dict[str, Any],
    warnings: list[str],
) -> Asked:
    images = given.get("init_images")
    if not isinstance(images, list) or len(images) != 1:
        raise UserError("init_images must have one image", "send it as base64")
    image = service.uploads.image(from_base64(images[0], "init_images"), "init_images")
    mask = None
    if given.get("mask"):
        mask = service.uploads.image(from_base64(given["mask"], "mask"), "mask", "mask")
        mask = ImageOps.invert(mask) if given.get("inpainting_mask_invert") else mask
        settings["mask_feather"] = given.get("mask_blur", 4)
        _warn_of_inpainting(given, warnings)
    if model.task_of(("image", "mask") if mask else ("image",)) == "edit":
        settings["image_guidance_scale"] = given.get("image_cfg_scale")
    else:
        settings["strength"] = given.get("denoising_strength", 0.75)
    if mask is not None and mask.size != image.size:
        mask = mask.resize(image.size)
    checked = read_settings(settings, service.kind)
    image, mask = _fitted(given, checked, image, mask)
    prompt, weights = read_loras(model, text_of(given, "prompt"))
    return Asked(prompt, checked, image, mask, lora_weights=weights, model=model)


def _warn_of_inpainting(given: Mapping[str, Any], warnings: list[str]) -> None:
    if given.get("inpainting_fill", 0) != 1:
        warnings.append(
            "inpainting_fill: sampling starts from the image itself (1); for noise, set strength 1"
        )
    if given.get("inpaint_full_res", True):
        warnings.append("inpaint_full_res: the whole image is made, not an enlarged part")


def _fitted(
    given: Mapping[str, Any], settings: Any, image: Image.Image, mask: Image.Image | None
) -> tuple[Image.Image, Image.Image | None]:
    """The image stretched to the size asked for, if `resize_mode` says so; cropping is what is done anyway.

    Raises:
        UserError: `resize_mode` has another value, or the size is too large.
    """
    mode = given.get("resize_mode", STRETCH)
    if mode not in (STRETCH, CROP):
        raise UserError(f"resize_mode is {mode!r:.40}", f"it must be {STRETCH} (stretch) or {CROP} (crop)")
    size = tuple(
        settings.given().get(name, side) for name, side in zip(("width", "height"), image.size, strict=True)
    )
    if mode == CROP or size == image.size:
        return image, mask
    if max(size) > 2**14:
        raise UserError("width and height are too large", "ask for less")
    return image.resize(size, Image.Resampling.LANCZOS), mask and mask.resize(size)


async def answered(
    request: Request, service: Service, asked: Asked, given: Mapping[str, Any], warnings: list[str]
) -> Response:
    """The images that are asked for, when they are made; of an interrupted request, those that are finished."""
    job = await run_in_threadpool(service.submit, client_of(request), asked)
    await service.finish(job, request)
    if job.error:
        raise job.error
    images = [base64.b64encode(image.data).decode("ascii") for image in job.images]
    parameters = {key: value for key, value in given.items() if key not in ("init_images", "mask")}
    return JSONResponse({
        "images": images if given.get("send_images", True) else [],
        "parameters": parameters,
        "info": json.dumps(info_of(job, asked, warnings + job.warnings)),
    })  # fmt: skip


def info_of(job: Job, asked: Asked, warnings: list[str]) -> dict[str, Any]:
    """What A1111 says of the images that it made."""
    records = [image.record for image in job.images]
    first = records[0] if records else None
    settings = first.settings if first else asked.settings
    texts = [infotext(record.to_json(), type(record.settings)) for record in records]
    return {
        "prompt": asked.prompt,
        "all_prompts": [record.prompt for record in records],
        "negative_prompt": settings.negative_prompt,
        "all_negative_prompts": [settings.negative_prompt] * len(records),
        "seed": first.seed if first else asked.settings.seed,
        "all_seeds": [record.seed for record in records],
        "width": settings.width,
        "height": settings.height,
        "sampler_name": _title(settings.scheduler),
        "cfg_scale": settings.guidance_scale,
        "steps": settings.num_inference_steps,
        "batch_size": len(records),
        "sd_model_hash": (first.weights_hash or "")[:10] if first else "",
        "sd_model_name": first.model_id if first else "",
        "index_of_first_image": 0,
        "infotexts": texts,
        "warnings": warnings,
    }


def _title(scheduler: str) -> str:
    return SCHEDULERS[scheduler].title if scheduler in SCHEDULERS else scheduler


# The state of the server


def current_job(service: Service, client: str) -> Job | None:
    """A client's oldest unfinished job."""
    return next((job for job in service.queue.jobs_of(client) if not job.is_finished), None)


async def progress(request: Request) -> Response:
    """How far this client's oldest request is."""
    service, client = service_of(request), client_of(request)
    jobs = [job for job in service.queue.jobs_of(client) if not job.is_finished]
    job = jobs[0] if jobs else None
    turn = job.oldest_turn if job else None
    previews = turn.previews if turn else ()
    wants_image = request.query_params.get("skip_current_image", "").lower() != "true"
    return JSONResponse({
        "progress": round(job.progress, 4) if job else 0.0,
        "eta_relative": 0.0,
        "state": {
            "skipped": False,
            "interrupted": bool(job and job.stop_asked),
            "stopping_generation": bool(job and job.stop_asked),
            "job": job.id if job else "",
            "job_count": len(jobs),
            "job_timestamp": "0",
            "job_no": 0,
            "sampling_step": turn.step if turn else 0,
            "sampling_steps": turn.num_steps if turn else 0,
        },
        "current_image": base64.b64encode(previews[0]).decode("ascii") if previews and wants_image else None,
        "textinfo": None,
    })  # fmt: skip


async def interrupt(request: Request) -> Response:
    """Cancel this client's oldest request."""
    service = service_of(request)
    if job := current_job(service, client_of(request)):
        service.queue.cancel(job)
    return JSONResponse({})


async def samplers(request: Request) -> Response:
    """The samplers that can be used here."""
    own = {"name": OWN_SCHEDULER, "aliases": [], "options": {}}
    usable = [(short, entry) for short, entry in SCHEDULERS.items() if entry.available]
    named = [{"name": entry.title, "aliases": [short], "options": {}} for short, entry in usable]
    return JSONResponse([*named, own])


async def schedulers(request: Request) -> Response:
    """The spacings of the noise levels."""
    return JSONResponse([
        {"name": "automatic", "label": "Automatic", "aliases": None, "default_rho": -1, "need_inner_model": False},
        {"name": KARRAS, "label": "Karras", "aliases": None, "default_rho": 7, "need_inner_model": False},
    ])  # fmt: skip


async def sd_models(request: Request) -> Response:
    """The models, without any path of this machine."""
    return JSONResponse([
        {
            "title": model.title,
            "model_name": model.name,
            "hash": model.weights_hash[:10] if model.weights_hash else None,
            "sha256": model.weights_hash,
            "filename": model.name,
            "config": None,
        }
        for model in service_of(request).models.values()
    ])  # fmt: skip


async def options(request: Request) -> Response:
    """The options: reading them, or choosing the model for this client's next requests."""
    service, client = service_of(request), client_of(request)
    if request.method == "GET":
        model = service.chosen_by(client)
        return JSONResponse({
            "sd_model_checkpoint": model.title,
            "sd_checkpoint_hash": model.weights_hash or "",
            "samples_format": "png",
        })  # fmt: skip
    given = await json_object(request)
    others = [name for name in given if name != "sd_model_checkpoint"]
    if others:
        what = f"the option {others[0]!r:.60} cannot be set"
        raise UserError(what, "give settings with each request")
    if "sd_model_checkpoint" in given:
        service.choose(client, service.find_model(given["sd_model_checkpoint"]))
    return JSONResponse(None)


async def png_info(request: Request) -> Response:
    """The text in a PNG that was made here."""
    service, given = service_of(request), await json_object(request)
    data = from_base64(given.get("image"), "image")
    record = await run_in_threadpool(read_record, service, data)
    flat = record.to_json()
    return JSONResponse({"info": infotext(flat, service.kind), "items": {}, "parameters": flat})


async def loras(request: Request) -> Response:
    """The LoRAs of the client's model."""
    model = service_of(request).chosen_by(client_of(request))
    found = [{"name": lora.name, "alias": lora.name, "path": "", "metadata": {}} for lora in model.loras]
    return JSONResponse(found)


async def scripts(request: Request) -> Response:
    """No scripts."""
    return JSONResponse({"txt2img": [], "img2img": []})


async def nothing(request: Request) -> Response:
    """An empty list, of what there is none here."""
    return JSONResponse([])


_EMPTY = ("upscalers", "latent-upscale-modes", "hypernetworks", "face-restorers", "prompt-styles", "sd-vae")

ROUTES = [
    Route("/sdapi/v1/txt2img", txt2img, methods=["POST"]),
    Route("/sdapi/v1/img2img", img2img, methods=["POST"]),
    Route("/sdapi/v1/progress", progress),
    Route("/sdapi/v1/interrupt", interrupt, methods=["POST"]),
    Route("/sdapi/v1/skip", interrupt, methods=["POST"]),
    Route("/sdapi/v1/samplers", samplers),
    Route("/sdapi/v1/schedulers", schedulers),
    Route("/sdapi/v1/sd-models", sd_models),
    Route("/sdapi/v1/options", options, methods=["GET", "POST"]),
    Route("/sdapi/v1/png-info", png_info, methods=["POST"]),
    Route("/sdapi/v1/loras", loras),
    Route("/sdapi/v1/scripts", scripts),
    *(Route(f"/sdapi/v1/{name}", nothing) for name in _EMPTY),
]
