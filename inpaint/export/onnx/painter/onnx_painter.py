"""The painter: a photo taken through its steps, one by one.

Shapes: H W pixels, h w latents, N windows of a prompt, L tokens, D text width, P pooled.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from .sampling import COLUMNS, Draws, Trajectory, ddim
from .text import Prompt, Words, is_empty, weighed

VERSION = 3
"""Of what is written."""
WINDOWS = 3
"""Of the text encoder, that a prompt may fill; what goes beyond is cut."""
_TEXTS = (("text_encoder", "tokenizer.json"), ("text_encoder_2", "tokenizer_2.json"))


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An adapter in memory."""

    card: dict[str, Any]
    loaded: Any
    """ONNX Runtime's; it has to live as long as it is active."""
    words: list[Words]
    """By text encoder."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Row:
    """One picture between two steps; arrays are float32, 1 x channels x h x w."""

    trajectory: Trajectory
    latents: np.ndarray
    clean: np.ndarray
    """The clean latents predicted by the call before; zeros at first."""
    earlier: np.ndarray
    """Those of the call before that."""
    noise: np.ndarray
    fresh: Mapping[int, np.ndarray]
    """Step -> what the sampler draws there."""
    hole: np.ndarray
    known: np.ndarray
    """The photo's latents: of a 9-channel base without what is in the hole."""
    told: Mapping[str, np.ndarray]
    """What the U-Net is told of the prompts, where there is guidance the negative one first."""
    guidance_scale: float
    adapter: LoadedAdapter | None
    weight: float
    tokens_cut: int
    """Of all prompts: beyond the last window, without effect."""
    step: int = 0
    """Steps taken."""

    @property
    def left(self) -> int:
        """Steps to take."""
        return len(self.trajectory.timesteps_S) - self.step


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
        if self.base["version"] != VERSION:
            raise ValueError(f"{folder}: written as version {self.base['version']}, this reads {VERSION}; export again")
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.log_severity_level = 3  # each part has inputs that only others use
        self._providers = list(providers)
        parts = ["unet", "vae_encoder", "vae_decoder", *(part for part, _ in self._texts)]
        self._sessions = {part: self._session(part) for part in parts}
        self._words = self._with_learned([()] * len(self._texts))
        """Of the base alone."""
        self._adapters: dict[str, LoadedAdapter] = {}
        for name, path in (adapters or {}).items():
            self.load(name, path)

    @property
    def _texts(self) -> tuple[tuple[str, str], ...]:
        return _TEXTS if self.base["is_xl"] else _TEXTS[:1]

    def load(self, name: str, path: str | Path) -> None:
        """One adapter more, under a name. Raises ValueError, as `read_adapter`."""
        self._adapters[name] = self.read_adapter(name, path)

    def read_adapter(self, name: str, path: str | Path) -> LoadedAdapter:
        """An adapter from its `.onnx_adapter`; from any thread. Raises ValueError for what ONNX Runtime would take: an
        adapter of another base, or any where one is in the base's weights. Args: name: what errors call it."""
        if not self.base["takes_adapters"]:
            raise ValueError(
                f"adapter {name}: {self.base['base']} has one in its weights and takes no other; leave it out, or load "
                "it beside an export of the base alone"
            )
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
        return LoadedAdapter(card, loaded, self._with_learned(card["learned"]) if any(card["learned"]) else self._words)

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
        prompt = self._written(self.base if adapter is None else self._adapters[adapter].card, prompt, category)
        painted = np.rint(self.paint_raw(photo, hole, prompt, adapter=adapter, **settings) * 255).astype(np.uint8)
        return np.where(hole[..., None], painted, photo)

    def paint_raw(
        self,
        photo: np.ndarray,
        hole: np.ndarray,
        prompt: Prompt,
        *,
        adapter: str | None = None,
        weight: float = 1.0,
        negative_prompt: Prompt = "",
        seed: int = 0,
        steps: int | None = None,
        strength: float = 1.0,
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
            strength: 1 forgets what was in the hole, less keeps its layout and takes so many fewer steps.
        """
        self._check(photo, hole, adapter)
        row = self.begin(
            photo,
            hole,
            prompt,
            trajectory=ddim(self.base, self.base["steps"] if steps is None else steps, strength),
            adapter=None if adapter is None else self._adapters[adapter],
            weight=weight,
            negative_prompt=negative_prompt,
            seed=seed,
            guidance_scale=self.base["guidance_scale"] if guidance_scale is None else guidance_scale,
        )
        if row.tokens_cut:
            warnings.warn(f"prompts are cut: {row.tokens_cut} tokens have no place", stacklevel=2)
        while row.left:
            row = self.step(row)
        return self.decode(row.latents)

    def begin(
        self,
        photo: np.ndarray,
        hole: np.ndarray,
        prompt: Prompt,
        *,
        trajectory: Trajectory,
        guidance_scale: float,
        adapter: LoadedAdapter | None = None,
        weight: float = 1.0,
        negative_prompt: Prompt = "",
        windows: int = WINDOWS,
        seed: int = 0,
        start: str = "original",
        text_alone: bool = False,
    ) -> Row:
        """A picture before its first step; draws what the exported base's painter draws, in its order. The arguments
        that `paint_raw` has, too, are the same.

        Args:
            windows: of the text encoder, that each prompt may fill.
            start: what the hole begins from beside noise where the trajectory does not begin from noise alone: `noise`
                (once more), `nothing`; others: what is there.
            text_alone: there is no photo: 4-channel bases draw nothing for it.
        """
        self._check(photo, hole, None)
        texts = [prompt] if guidance_scale <= 1 else [negative_prompt, prompt]
        told, cut = self._told(texts, windows, adapter, weight, photo.shape[:2])
        draws, cell = Draws(seed), self.base["downsample"]
        pixels = photo.transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1
        hole_11hw = hole[None, None, ::cell, ::cell].astype(np.float32)
        is_nine, shape = self.base["in_channels"] == 9, (4, *hole_11hw.shape[2:])
        image = np.zeros((1, *shape), np.float32)
        unseen = text_alone and not is_nine
        if trajectory.start_clean or not (is_nine or unseen):
            image = self._encoded(pixels, draws.normal(shape))
        noise = draws.normal(shape)[None]
        # For the photo without what is in the hole: who does not see it draws all the same.
        drawn = None if unseen else draws.normal(shape)
        known = self._encoded(pixels * ~hole[None, None], drawn) if is_nine and drawn is not None else image
        first = image
        if start in ("noise", "nothing"):
            first = image * (1 - hole_11hw) + hole_11hw * (noise if start == "noise" else 0)
        drawing = np.flatnonzero(trajectory.table_SK[:, COLUMNS.index("next_noise")])
        return Row(
            trajectory=trajectory,
            latents=np.float32(trajectory.start_clean) * first + np.float32(trajectory.start_noise) * noise,
            clean=np.zeros_like(noise),
            earlier=np.zeros_like(noise),
            noise=noise,
            fresh={int(step): draws.normal(shape)[None] for step in drawing},
            hole=hole_11hw,
            known=known,
            told=told,
            guidance_scale=guidance_scale,
            adapter=adapter,
            weight=weight,
            tokens_cut=cut,
        )

    def step(self, row: Row) -> Row:
        """The same picture after one step more."""
        line = dict(zip(COLUMNS, row.trajectory.table_SK[row.step].astype(np.float32), strict=True))
        is_nine, rows = self.base["in_channels"] == 9, len(row.told["states"])
        scaled = line["scale_input"] * row.latents
        seen = np.concatenate([scaled, row.hole, row.known], axis=1) if is_nine else scaled
        sample = np.repeat(seen, rows, axis=0).astype(row.told["states"].dtype)
        times = np.full(rows, row.trajectory.timesteps_S[row.step], np.float32)
        output = self._run("unet", {"sample": sample, "timestep": times, **row.told}, row.adapter, row.weight)[0]
        output = output.astype(np.float32)
        if rows == 2:  # classifier-free guidance (Ho 2022, eq. 6)
            output = output[:1] + np.float32(row.guidance_scale) * (output[1:] - output[:1])
        clean = line["clean_latents"] * row.latents + line["clean_output"] * output
        if self.base["clip_range"] is not None:
            clean = clean.clip(-self.base["clip_range"], self.base["clip_range"])
        parts = {"latents": row.latents, "output": output, "clean": clean, "previous": row.clean}
        parts |= {"earlier": row.earlier, "noise": row.fresh.get(row.step, np.zeros_like(clean))}
        latents = np.zeros_like(clean)
        for name, part in parts.items():
            latents = latents + line[f"next_{name}"] * part
        if not is_nine:
            known = line["known_clean"] * row.known + line["known_noise"] * row.noise
            latents = known + row.hole * (latents - known)
        return replace(row, latents=latents, clean=clean, earlier=row.clean, step=row.step + 1)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents, 1 x 4 x h x w -> H W 3 float32 in [0, 1]."""
        unscaled = latents / self.base["scaling_factor"] + self.base["shift_factor"]
        (decoded,) = self._run("vae_decoder", {"latents": unscaled.astype(self._type("vae_decoder"))})
        picture: np.ndarray = (decoded[0].astype(np.float32) / 2 + 0.5).clip(0, 1).transpose(1, 2, 0)
        return picture

    def _encoded(self, pixels: np.ndarray, noise: np.ndarray) -> np.ndarray:
        mean, std = self._run("vae_encoder", {"pixels": pixels.astype(self._type("vae_encoder"))})
        drawn = mean.astype(np.float32) - self.base["shift_factor"] + std.astype(np.float32) * noise
        scaled: np.ndarray = drawn * np.float32(self.base["scaling_factor"])
        return scaled

    def _told(
        self, texts: list[Prompt], windows: int, adapter: LoadedAdapter | None, weight: float, size: tuple[int, ...]
    ) -> tuple[dict[str, np.ndarray], int]:
        """What the U-Net is told of the prompts, and how many of their tokens had no place."""
        rows, cut = [], 0
        for place, text in enumerate(texts):
            is_empty_negative = len(texts) == 2 and place == 0 and is_empty(text)
            states, pooled, more = self._text(text, windows, adapter, weight)
            if is_empty_negative and self.base["zero_empty_negative"] and pooled is not None:
                states, pooled = np.zeros_like(states), np.zeros_like(pooled)
            rows.append((states, pooled))
            cut += more
        # Attention to a text twice is attention to it once: prompts of fewer windows are repeated, whole.
        length = np.lcm.reduce([states.shape[1] for states, _ in rows])
        told = {"states": np.concatenate([np.tile(states, (1, length // states.shape[1], 1)) for states, _ in rows])}
        pooled_rows = [pooled for _, pooled in rows if pooled is not None]
        if pooled_rows:
            told["pooled"] = np.concatenate(pooled_rows)
            told["sizes"] = np.array([[*size, 0, 0, *size]] * len(texts), told["pooled"].dtype)
        return told, cut

    def _text(
        self, text: Prompt, windows: int, adapter: LoadedAdapter | None, weight: float
    ) -> tuple[np.ndarray, np.ndarray | None, int]:
        """States 1 (N L) D, pooled 1 P (SDXL), and how many tokens had no place."""
        words = self._words if adapter is None else adapter.words
        room = self.base["max_tokens"] - 2
        split = [one.windows(text, room=room, most=windows) for one in words]
        # A token may have more vectors in one encoder than in the other.
        count = max(len(found) for found, _ in split)
        states, pooled = [], None
        for number, (part, _) in enumerate(self._texts):
            found = [*split[number][0], *[[]] * (count - len(split[number][0]))]
            ids = np.array([self._framed(number, [token for token, _ in window]) for window in found])
            outputs = self._run(part, {"ids": ids}, adapter, weight)
            states.append(weighed(outputs[0], [[factor for _, factor in window] for window in found]))
            if self.base["is_xl"] and number:
                # SDXL pools at the highest id, and so the window with the highest one stands for all.
                place = int(ids.max(axis=1).argmax())
                pooled = outputs[1][place : place + 1]
        joined = np.concatenate(states, axis=-1)
        return joined.reshape(1, -1, joined.shape[-1]), pooled, split[0][1]

    def _framed(self, number: int, ids: list[int]) -> list[int]:
        """One window, whole."""
        start, end, padding = self.base["special_ids"][number]
        return [start, *ids, end, *[padding] * (self.base["max_tokens"] - 2 - len(ids))]

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

    def _with_learned(self, learned: Sequence[Sequence[str]]) -> list[Words]:
        """Of each text encoder. Args: learned: names of the rows that come with an adapter."""
        return [Words(self.folder / file, tokens) for (_, file), tokens in zip(self._texts, learned, strict=False)]

    def _session(self, part: str) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(self.folder / f"{part}.onnx", self._options, providers=self._providers)

    def _run(
        self, part: str, feed: dict[str, np.ndarray], adapter: LoadedAdapter | None = None, weight: float = 1.0
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
