"""The description of the HTTP interface as an OpenAPI document, written from its routes and from the settings."""

from collections.abc import Sequence
from typing import Any

from starlette.routing import Route

from ldm.models.generation_settings import GenerationSettings
from ldm.version import __version__

OPENAPI_VERSION = "3.1.0"
_IMAGE = {"type": "string", "description": "An image as base64 or as a data URL. URLs and paths are refused."}
_TEXT = {"type": "string"}


def document(routes: Sequence[Route], kind: type[GenerationSettings], *, with_token: bool) -> dict[str, Any]:
    """The document.

    Args:
        with_token: whether clients need a token.
    """
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        methods = sorted((route.methods or set()) - {"HEAD"})
        for method in methods:
            path = route.path.replace(":int", "")
            paths.setdefault(path, {})[method.lower()] = _operation(route, method)
    schemes = {"bearer": {"type": "http", "scheme": "bearer"}, "basic": {"type": "http", "scheme": "basic"}}
    security: list[dict[str, Any]] = [{name: []} for name in schemes] if with_token else []
    return {
        "openapi": OPENAPI_VERSION,
        "info": {"title": "OpenLDM", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {"Settings": _settings(kind), **_BODIES},
            "securitySchemes": schemes,
        },
        "security": security,
    }


def _settings(kind: type[GenerationSettings]) -> dict[str, Any]:
    """The settings of an image; all may be left out."""
    schema = kind.model_json_schema()
    return {**schema, "title": "Settings", "description": "The settings of an image; all may be left out."}


def _operation(route: Route, method: str) -> dict[str, Any]:
    described = (route.endpoint.__doc__ or "").strip().splitlines()[0]
    names = [part.strip("{}").partition(":")[0] for part in route.path.split("/") if part.startswith("{")]
    found: dict[str, Any] = {
        "summary": described,
        "parameters": [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in names]
        + _QUERIES.get((route.path, method), []),
        "responses": {
            "200": {"description": "Done."},
            "400": {"description": "A field is wrong: the message names it and says what to do."},
            "401": {"description": "The token is missing or wrong."},
            "429": {"description": "The queue is full, or there were too many requests."},
        },
    }
    if body := _REQUESTS.get((route.path, method)):
        name, media_type = body
        content = {media_type: {"schema": {"$ref": f"#/components/schemas/{name}"}}}
        found["requestBody"] = {"required": True, "content": content}
    return found


def _query(name: str, described: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": _TEXT, "description": described}


_QUERIES = {
    ("/ldm/form", "GET"): [_query("model", "The model whose form it is; else the first one.")],
    ("/ldm/jobs", "GET"): [_query("ids", "Of the jobs to look at, separated by commas.")],
    ("/ldm/runs/{run:int}", "GET"): [
        _query("after", "`curves.next` of the last answer: points up to this step are not sent again."),
        _query(
            "key", "`curves.key` of the last answer; if the curves are thinned anew, all points are sent."
        ),
        _query("log", "`log.num_lines` of the last answer: these lines are not sent again."),
    ],
}
JSON, FORM = "application/json", "multipart/form-data"
_REQUESTS = {
    ("/ldm/jobs", "POST"): ("Job", JSON),
    ("/ldm/read", "POST"): ("Image", JSON),
    ("/v1/images/generations", "POST"): ("ImagesGeneration", JSON),
    ("/v1/images/edits", "POST"): ("ImagesEdit", FORM),
    ("/sdapi/v1/txt2img", "POST"): ("Txt2Img", JSON),
    ("/sdapi/v1/img2img", "POST"): ("Img2Img", JSON),
    ("/sdapi/v1/options", "POST"): ("Options", JSON),
    ("/sdapi/v1/png-info", "POST"): ("Image", JSON),
}

_WITH_SETTINGS = [{"$ref": "#/components/schemas/Settings"}]
_OPENAI: dict[str, Any] = {
    "prompt": _TEXT,
    "model": _TEXT,
    "n": {"type": "integer", "minimum": 1},
    "size": {"type": "string", "description": "Width x height in pixels, or auto."},
    "response_format": {"enum": ["b64_json", "url"]},
    "output_format": {"enum": ["png", "jpeg", "webp"]},
    "output_compression": {"type": "integer", "minimum": 0, "maximum": 100},
}
_A1111: dict[str, Any] = {
    "prompt": _TEXT,
    "negative_prompt": _TEXT,
    "seed": {"type": "integer", "description": "-1 draws one."},
    "steps": {"type": "integer", "minimum": 1},
    "cfg_scale": {"type": "number"},
    "width": {"type": "integer"},
    "height": {"type": "integer"},
    "sampler_name": _TEXT,
    "scheduler": {"enum": ["automatic", "karras"]},
    "batch_size": {"type": "integer", "minimum": 1},
    "n_iter": {"type": "integer", "minimum": 1},
    "override_settings": {"type": "object", "properties": {"sd_model_checkpoint": _TEXT}},
}
_BODIES: dict[str, Any] = {
    "Image": {"type": "object", "properties": {"image": _IMAGE}, "required": ["image"]},
    "Options": {"type": "object", "properties": {"sd_model_checkpoint": _TEXT}},
    "Job": {
        "allOf": _WITH_SETTINGS,
        "type": "object",
        "properties": {
            "prompt": _TEXT,
            "model": {"type": "string", "description": "One of those that /v1/models lists."},
            "image": _IMAGE,
            "mask": _IMAGE,
            "mask_from_alpha": {"type": "boolean"},
            "controls": {
                "type": "object",
                "description": 'Such as {"canny": {"image": BASE64, "scale": 0.8}}.',
            },
            "loras": {"type": "array", "items": {"type": "number"}},
            "grid_x": {"type": "string", "description": "Such as guidance_scale=2,4,8."},
            "grid_y": _TEXT,
        },
    },
    "ImagesGeneration": {
        "type": "object",
        "properties": _OPENAI,
        "required": ["prompt"],
        "allOf": _WITH_SETTINGS,
    },
    "ImagesEdit": {
        "type": "object",
        "properties": {
            **_OPENAI,
            "image": {"type": "string", "format": "binary"},
            "mask": {"type": "string", "format": "binary"},
        },
        "required": ["image"],
    },
    "Txt2Img": {"type": "object", "properties": _A1111},
    "Img2Img": {
        "type": "object",
        "properties": {
            **_A1111,
            "init_images": {"type": "array", "items": _IMAGE, "maxItems": 1},
            "mask": _IMAGE,
            "denoising_strength": {"type": "number", "minimum": 0, "maximum": 1},
            "mask_blur": {"type": "integer"},
            "inpainting_mask_invert": {"type": "integer"},
            "resize_mode": {"enum": [0, 1]},
        },
        "required": ["init_images"],
    },
}
