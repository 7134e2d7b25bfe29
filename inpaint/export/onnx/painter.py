"""Painting holes with an exported base and its adapters on ONNX Runtime alone: numpy and tokenizers, no torch.

This file lies beside every exported base and stands alone:

    painter = OnnxPainter("export/onnx", adapters={"CDP_FOOD": "export/onnx/CDP_FOOD.onnx_adapter"})
    picture = painter.paint(photo, hole, "a red box", adapter="CDP_FOOD", seed=7)

Guarantees: the picture of the painter that the base was exported from, with DDIM, the same seed and size, to 1e-3 in
[0, 1] before paste-back in fp32; pixels outside the hole are the photo's. An adapter of another base, or one that is
not whole, is refused: ONNX Runtime would paint with it. Not covered: prompts of more than one window of the text
encoder (what is beyond is cut), weights in prompts.

Shapes: H W pixels, h w latents, L tokens, D text width.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

VERSION = 1
"""Of what is written."""
_TEXTS = (("text_encoder", "tokenizer.json"), ("text_encoder_2", "tokenizer_2.json"))


class _Words:
    """One text encoder's tokenizer; learned tokens have the ids behind the vocabulary's, in their rows' order."""

    def __init__(self, file: Path, learned: list[str]) -> None:
        self._tokenizer, self._learned = Tokenizer.from_file(str(file)), learned
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        known = self._tokenizer.get_vocab_size()
        self._tokenizer.add_tokens(learned)
        self._rows = {self._tokenizer.token_to_id(token): known + row for row, token in enumerate(learned)}

    def ids(self, text: str) -> list[int]:
        """Without those of the start, the end and the padding."""
        for token in set(self._encoded(text).tokens) & set(self._learned):
            text = text.replace(token, " ".join(_vectors_of(token, self._learned)))
        return [self._rows.get(token, token) for token in self._encoded(text).ids]

    def _encoded(self, text: str) -> Any:
        return self._tokenizer.encode(text, add_special_tokens=False)


@dataclass(frozen=True)
class _Adapter:
    card: dict[str, Any]
    loaded: Any
    """ONNX Runtime's; it has to live as long as it is active."""
    words: list[_Words]
    """By text encoder."""


class OnnxPainter:
    """Paints one photo at a time."""

    def __init__(
        self,
        folder: str | Path,
        *,
        adapters: Mapping[str, str | Path] | None = None,
        threads: int = 0,
        providers: tuple[str, ...] = ("CPUExecutionProvider",),
    ) -> None:
        """
        Args:
            folder: of the exported base.
            adapters: name -> its `.onnx_adapter`, beside which lies its card, `.onnx_adapter.json`.
            threads: of each operator; 0: as many as cores.
            providers: of ONNX Runtime.
        """
        self.folder = Path(folder)
        self.base = json.loads((self.folder / "base.json").read_text(encoding="utf-8"))
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.log_severity_level = 3  # each part has inputs that only others use
        self._providers = list(providers)
        parts = ["unet", "vae_encoder", "vae_decoder", *(part for part, _ in self._texts)]
        self._sessions = {part: self._session(part) for part in parts}
        self._words = self._with_learned([[] for _ in self._texts])
        """Of the base alone."""
        self._adapters: dict[str, _Adapter] = {}
        for name, path in (adapters or {}).items():
            self.load(name, path)

    @property
    def _texts(self) -> tuple[tuple[str, str], ...]:
        return _TEXTS if self.base["is_xl"] else _TEXTS[:1]

    def load(self, name: str, path: str | Path) -> None:
        """One adapter more, from its `.onnx_adapter`. Raises ValueError for what ONNX Runtime would take: an adapter of
        another base."""
        path = Path(path)
        card = json.loads(card_of(path).read_text(encoding="utf-8"))
        if card["base_revision"] != self.base["revision"]:
            raise ValueError(
                f"adapter {name}: made for base {card['base']} at {card['base_revision'][:12]}, this is "
                f"{self.base['base']} at {self.base['revision'][:12]}"
            )
        told = onnxruntime.AdapterFormat.read_adapter(str(path))
        versions = told.get_model_version(), told.get_adapter_version()
        if versions != (version_of(card["base_revision"]), VERSION):
            raise ValueError(f"adapter {name}: {path.name} and its card are not of one export; copy both again")
        loaded = onnxruntime.LoraAdapter()
        loaded.Load(str(path))
        self._adapters[name] = _Adapter(card, loaded, self._with_learned(card["learned"]))

    def paint(
        self,
        photo: np.ndarray,
        hole: np.ndarray,
        prompt: str,
        *,
        adapter: str | None = None,
        category: str | None = None,
        **settings: Any,
    ) -> np.ndarray:
        """A photo with its hole painted, H W 3 uint8. Args: category: of the adapter's, whose token is written into the
        prompt; unset: its only one. The others as of `paint_raw`."""
        self._check(photo, hole, adapter)
        if adapter is not None:
            prompt = self._written(self._adapters[adapter].card, prompt, category)
        painted = np.rint(self.paint_raw(photo, hole, prompt, adapter=adapter, **settings) * 255).astype(np.uint8)
        return np.where(hole[..., None], painted, photo)

    def paint_raw(
        self,
        photo: np.ndarray,
        hole: np.ndarray,
        prompt: str,
        *,
        adapter: str | None = None,
        weight: float = 1.0,
        negative_prompt: str = "",
        seed: int = 0,
        steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> np.ndarray:
        """What the VAE decodes: H W 3 float32 in [0, 1], before paste-back.

        Args:
            photo: H W 3 uint8, sides multiples of the base's `size_multiple`.
            hole: H W bool, true where to paint.
            prompt: as the adapter was trained.
            adapter: one of those that were given; none: the base alone.
            weight: of the adapter's LoRA.
            negative_prompt: what to steer away from, where there is guidance.
            steps, guidance_scale: unset: as the base prefers; guidance up to 1 is none.
        """
        self._check(photo, hole, adapter)
        loaded = None if adapter is None else self._adapters[adapter]
        scale = self.base["guidance_scale"] if guidance_scale is None else guidance_scale
        texts = [prompt] if scale <= 1 else [negative_prompt, prompt]
        told = self._told(texts, loaded, weight, photo.shape[:2])
        rows, dtype = len(texts), told["states"].dtype
        draws = _Draws(seed)
        pixels = photo.transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1
        step = self.base["downsample"]
        hole_11hw = hole[None, None, ::step, ::step].astype(np.float32)
        is_nine = self.base["in_channels"] == 9
        shape = (4, *hole_11hw.shape[2:])
        known = None if is_nine else self._encoded(pixels, draws.normal(shape))
        noise = draws.normal(shape)[None]
        if is_nine:
            known = self._encoded(pixels * ~hole[None, None], draws.normal(shape))
        assert known is not None
        latents, times = noise, self._times(self.base["steps"] if steps is None else steps)
        for place, time in enumerate(times):
            seen = np.concatenate([latents, hole_11hw, known], axis=1) if is_nine else latents
            feed = {"sample": np.repeat(seen, rows, axis=0).astype(dtype), "timestep": np.full(rows, time, np.int64)}
            output = self._run("unet", {**feed, **told}, loaded, weight)[0].astype(np.float32)
            if rows == 2:
                output = output[:1] + np.float32(scale) * (output[1:] - output[:1])
            before = time - len(self.base["alphas_cumprod"]) // len(times)
            latents = self._step(latents, output, self._alpha(time), self._alpha(before))
            if not is_nine:
                at = self._alpha(times[place + 1]) if place + 1 < len(times) else 1.0
                shown = np.sqrt(at) * known + np.sqrt(1 - at) * noise
                latents = (hole_11hw * latents + (1 - hole_11hw) * shown).astype(np.float32)
        latents = latents / self.base["scaling_factor"] + self.base["shift_factor"]
        (decoded,) = self._run("vae_decoder", {"latents": latents.astype(self._type("vae_decoder"))})
        return (decoded[0].astype(np.float32) / 2 + 0.5).clip(0, 1).transpose(1, 2, 0)

    def _step(self, latents: np.ndarray, output: np.ndarray, now: float, before: float) -> np.ndarray:
        """DDIM without noise (Song 2020, eq. 12)."""
        clean = (latents - np.sqrt(1 - now) * output) / np.sqrt(now)
        noise = output
        if self.base["prediction_type"] == "v_prediction":
            clean = np.sqrt(now) * latents - np.sqrt(1 - now) * output
            noise = np.sqrt(now) * output + np.sqrt(1 - now) * latents
        stepped: np.ndarray = np.sqrt(before) * clean + np.sqrt(1 - before) * noise
        return stepped.astype(np.float32)

    def _alpha(self, time: int) -> float:
        return float(self.base["alphas_cumprod"][time] if time >= 0 else self.base["final_alpha_cumprod"])

    def _times(self, steps: int) -> list[int]:
        """The timesteps of DDIM (Lin 2023, table 2), falling."""
        total, spacing = len(self.base["alphas_cumprod"]), self.base["timestep_spacing"] or "leading"
        if not 1 <= steps <= total:
            raise ValueError(f"steps {steps}: give 1 to {total}")
        if spacing == "linspace":
            times = np.linspace(0, total - 1, steps).round()[::-1]
        elif spacing == "trailing":
            times = np.round(np.arange(total, 0, -total / steps)[:steps]) - 1
        else:
            times = (np.arange(steps) * (total // steps)).round()[::-1] + self.base["steps_offset"]
        return [int(time) for time in times]

    def _encoded(self, pixels: np.ndarray, noise: np.ndarray) -> np.ndarray:
        mean, std = self._run("vae_encoder", {"pixels": pixels.astype(self._type("vae_encoder"))})
        drawn = mean.astype(np.float32) - self.base["shift_factor"] + std.astype(np.float32) * noise
        scaled: np.ndarray = drawn * np.float32(self.base["scaling_factor"])
        return scaled

    def _told(
        self, texts: list[str], adapter: _Adapter | None, weight: float, size: tuple[int, ...]
    ) -> dict[str, np.ndarray]:
        """What the U-Net is told of the prompts."""
        found = []
        for number, (part, _) in enumerate(self._texts):
            ids = np.array([self._ids(number, text, adapter) for text in texts])
            found.append(self._run(part, {"ids": ids}, adapter, weight))
        told = {"states": np.concatenate([outputs[0] for outputs in found], axis=-1)}
        if self.base["is_xl"]:
            told["pooled"] = found[-1][1].copy()
            told["sizes"] = np.array([[*size, 0, 0, *size]] * len(texts), told["pooled"].dtype)
            if len(texts) == 2 and not texts[0] and self.base["zero_empty_negative"]:
                told["states"][0], told["pooled"][0] = 0, 0
        return told

    def _ids(self, number: int, text: str, adapter: _Adapter | None) -> list[int]:
        """One window of token ids."""
        ids = (self._words if adapter is None else adapter.words)[number].ids(text)
        start, end, padding = self.base["special_ids"][number]
        room = self.base["max_tokens"] - 2
        if len(ids) > room:
            warnings.warn(f"a prompt is cut: {len(ids) - room} of its tokens have no place", stacklevel=2)
        ids = ids[:room]
        return [start, *ids, end, *[padding] * (room - len(ids))]

    def _written(self, card: Mapping[str, Any], prompt: str, category: str | None) -> str:
        """As the adapter was trained."""
        tokens = card["tokens"]
        if not tokens:
            return str(card["prompt_format"]).format(prompt=prompt)
        category = category or (next(iter(tokens)) if len(tokens) == 1 else None)
        if category not in tokens:
            raise ValueError(f"category {category!r}: this adapter knows {', '.join(sorted(tokens))}")
        if tokens[category] in prompt.split():
            return prompt
        return str(card["prompt_format"]).format(token=tokens[category], prompt=prompt, category=category)

    def _with_learned(self, learned: list[list[str]]) -> list[_Words]:
        """Of each text encoder. Args: learned: names of the rows that come with an adapter."""
        return [_Words(self.folder / file, tokens) for (_, file), tokens in zip(self._texts, learned, strict=False)]

    def _session(self, part: str) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(self.folder / f"{part}.onnx", self._options, providers=self._providers)

    def _run(
        self, part: str, feed: dict[str, np.ndarray], adapter: _Adapter | None = None, weight: float = 1.0
    ) -> list[np.ndarray]:
        if weight != 1 and adapter is not None:
            feed["lora_weight"] = np.array([weight], np.float32)
        options = onnxruntime.RunOptions()
        if adapter is not None:
            options.add_active_adapter(adapter.loaded)
        outputs: list[np.ndarray] = self._sessions[part].run(None, feed, options)
        return outputs

    def _type(self, part: str) -> type:
        return np.float16 if "float16" in self._sessions[part].get_inputs()[0].type else np.float32

    def _check(self, photo: np.ndarray, hole: np.ndarray, adapter: str | None) -> None:
        multiple = self.base["size_multiple"]
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or any(np.mod(photo.shape[:2], multiple)):
            raise ValueError(f"photo {photo.dtype} {photo.shape}: give uint8 (H, W, 3), sides multiples of {multiple}")
        if hole.dtype != np.bool_ or hole.shape != photo.shape[:2]:
            raise ValueError(f"hole {hole.dtype} {hole.shape}: give bool of the photo's {photo.shape[:2]}")
        if adapter is not None and adapter not in self._adapters:
            raise ValueError(f"adapter {adapter!r}: given were {', '.join(sorted(self._adapters)) or 'none'}")


def card_of(path: Path) -> Path:
    """Of an adapter's file."""
    return path.with_name(f"{path.name}.json")


def version_of(revision: str) -> int:
    """A base's revision as the number that an adapter's file has room for."""
    return int(revision[:7], 16)


def _vectors_of(token: str, learned: list[str]) -> list[str]:
    """The names of a token's vectors: its own, and `TOKEN_1`, `TOKEN_2`, ... (diffusers)."""
    names = [token]
    while f"{token}_{len(names)}" in learned:
        names.append(f"{token}_{len(names)}")
    return names


class _Draws:
    """Standard normal numbers as torch's CPU generator of a seed draws them: 24 bits of the Mersenne Twister to each,
    and Box-Muller on halves of 16."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.RandomState(seed % 2**32)

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        count = int(np.prod(shape))
        if count < 16:
            raise ValueError(f"{shape}: fewer than 16 numbers")
        drawn = self._uniform(count)
        whole = count // 16 * 16
        values = drawn.copy()
        values[:whole] = _box_muller(drawn[:whole])
        if whole < count:
            values[-16:] = _box_muller(self._uniform(16))
        return values.reshape(shape)

    def _uniform(self, count: int) -> np.ndarray:
        bits = self._bits.randint(0, 2**32, count, np.uint32)
        return (bits & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    first, second = np.split(uniform.reshape(-1, 2, 8), 2, axis=1)
    radius, angle = np.sqrt(-2 * np.log1p(-first)), np.float32(2 * np.pi) * second
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
