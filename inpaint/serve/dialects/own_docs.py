"""What /docs and /openapi.json say of `POST /paint`: its fields, examples and answers."""

from typing import Any

from inpaint.diffusion.samplers import Sampler


def _field(kind: str, description: str, example: Any = None, **more: Any) -> dict[str, Any]:
    schema = {"type": kind, "description": description, **more}
    return schema if example is None else {**schema, "examples": [example]}


_FIELDS: dict[str, Any] = {
    "image": _field("string", "The photo: PNG, JPEG or WEBP.", format="binary"),
    "mask": _field("string", "Same size; white = paint. Without it, transparent pixels are painted.", format="binary"),
    "category": _field("string", "Whose look is painted: GET /catalogue lists them.", "CDP_FOOD"),
    "adapters": _field("string", "NAME:WEIGHT,... in place of, or with, a category.", "CDP_FOOD:0.8,CDP_COS:0.3"),
    "prompt": _field("string", "What to paint; the category's token is written into it.", "a wooden table"),
    "negative_prompt": _field("string", "What to steer away from; needs guidance above 1.", "text"),
    "n": _field("integer", "Pictures, with seeds seed, seed + 1, ...", 1, default=1, minimum=1),
    "seed": _field("integer", "Same request, same seed: same picture. Random if not given; x-seed says.", 42),
    "steps": _field("integer", "Denoising steps at strength 1; default: the base's.", 25, minimum=1),
    "guidance_scale": _field("number", "Up to 1 there is none; default: the base's.", 7.5, minimum=0, maximum=100),
    "sampler": _field("string", "How noise becomes a picture.", "ddim", enum=[str(s) for s in Sampler]),
    "strength": _field("number", "1 forgets what was in the hole, less keeps its layout; in (0, 1].", 1.0, default=1),
    "size": _field("integer", "Side of the square whose area is painted; default: what the base was trained at.", 512),
    "padding": _field("integer", "Paint only the hole's surroundings, with so many pixels around it.", 64, minimum=0),
    "feather": _field("integer", "Pixels inside the hole over which the photo fades into the painting.", 0, minimum=0),
    "timeout_s": _field("number", "Give up after so many seconds: 408.", 60.0),
    "output_format": _field("string", "Only png keeps kept pixels bit for bit.", "png", enum=["png", "jpeg", "webp"]),
    "quality": _field("integer", "Of jpeg and webp.", 95, default=95, minimum=0, maximum=100),
    "answer": _field("string", "Default: image for one, json for several.", "image", enum=["image", "json"]),
    "stream": _field("boolean", "Server-sent events preview, painted, error.", False, default=False),
    "previews": _field("integer", "Pictures on the way, with stream.", 2, minimum=0, maximum=8),
}

_BASE64 = {"type": "string", "description": "The file in base64, with or without data:image/png;base64, before it."}
_IN_JSON: dict[str, Any] = {
    **_FIELDS,
    "image": _BASE64,
    "mask": _BASE64,
    "adapters": {
        "oneOf": [
            {"type": "string"},
            {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": {"type": "string"}, "weight": {"type": "number", "default": 1.0}},
                },
            },
        ]
    },
}
_PICTURE = {"schema": {"type": "string", "format": "binary"}}
_PROBLEM = {"application/problem+json": {"schema": {"type": "object"}}}

PAINT: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": {"type": "object", "required": ["image"], "properties": _FIELDS}},
            "application/json": {
                "schema": {"type": "object", "required": ["image"], "properties": _IN_JSON},
                "examples": {
                    "category": {
                        "summary": "One picture in a category's look",
                        "value": {"image": "iVBORw0...", "mask": "iVBORw0...", "category": "CDP_FOOD", "seed": 42},
                    },
                    "adapters": {
                        "summary": "Four pictures, two adapters, weighted",
                        "value": {
                            "image": "iVBORw0...",
                            "mask": "iVBORw0...",
                            "prompt": "CDP_FOOD background, a wooden table",
                            "adapters": [{"name": "CDP_FOOD", "weight": 0.8}, {"name": "CDP_COS", "weight": 0.3}],
                            "n": 4,
                        },
                    },
                },
            },
        },
    },
    "responses": {
        "200": {
            "description": "The picture, or JSON, or events. Headers: x-seed, x-kept-pixels-changed (0), x-request-id, "
            "x-base-revision, x-adapter-digest, x-warnings.",
            "content": {
                "image/png": _PICTURE,
                "image/jpeg": _PICTURE,
                "image/webp": _PICTURE,
                "application/json": {"schema": {"type": "object"}},
                "text/event-stream": {"schema": {"type": "string"}},
            },
        },
        "400": {"description": "The request cannot be painted; names the field.", "content": _PROBLEM},
        "401": {"description": "No valid API key.", "content": _PROBLEM},
        "404": {"description": "No such category or adapter; names the nearest.", "content": _PROBLEM},
        "408": {"description": "timeout_s has passed.", "content": _PROBLEM},
        "413": {"description": "More bytes than are read.", "content": _PROBLEM},
        "415": {"description": "Neither a form nor JSON.", "content": _PROBLEM},
        "429": {"description": "Overloaded; Retry-After says when to come back.", "content": _PROBLEM},
    },
}
