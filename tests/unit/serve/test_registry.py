"""The registry: new, changed, removed, put back; a bad adapter is refused with its reason and the rest go on."""

import asyncio
import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow.fs as pafs
import pytest
import torch
from safetensors.torch import save

from inpaint.data.storage import Root, open_root
from inpaint.errors import InpaintError
from inpaint.export.adapter_folder import CARD_FILE, LORA_FILE, save_adapter
from inpaint.models.adapter import Adapter
from inpaint.models.base import BaseInfo, read_base_info
from inpaint.serve.adapters.cache import AdapterCache
from inpaint.serve.adapters.registry import Registry, RegistrySettings
from inpaint.serve.service import AdapterGone
from tests.adapters import SHIPPED, variant, without_tokens, write_variant


@pytest.fixture(scope="module")
def base() -> BaseInfo:
    return read_base_info("toy")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "registry"
    shutil.copytree(SHIPPED, folder)
    return folder


@pytest.fixture
def registry(root: Path, tmp_path: Path, base: BaseInfo) -> Registry:
    registry = Registry(RegistrySettings(root=str(root), cache=str(tmp_path / "cache")), base)
    registry.poll()
    return registry


def age(folder: Path) -> None:
    """As if written an hour ago: settled, as most of a registry is."""
    for file in folder.rglob("*"):
        os.utime(file, (time.time() - 3600,) * 2)


def test_shipped_adapters_are_served_with_their_categories(registry: Registry) -> None:
    served = registry.catalogue()
    assert [(name, *entry.card.tokens) for name, entry in served.items()] == [
        ("CDP_COS", "CDP_COS"),
        ("CDP_FOOD", "CDP_FOOD"),
    ]
    assert not registry.refused()


def test_a_new_adapter_is_served_and_a_removed_one_is_not(registry: Registry, root: Path) -> None:
    write_variant(root, "CDP_NEW", 1)
    shutil.rmtree(root / "CDP_FOOD")
    registry.poll()
    assert list(registry.catalogue()) == ["CDP_COS", "CDP_NEW"]


def test_adapters_without_tokens_are_served_and_claim_no_category(registry: Registry, root: Path) -> None:
    for name in ("house_style", "CDP_COS-light"):
        save_adapter(root / name, without_tokens(variant("CDP_COS", 1)))
    registry.poll()
    assert list(registry.catalogue()) == ["CDP_COS", "CDP_COS-light", "CDP_FOOD", "house_style"]


def test_a_replaced_version_stays_usable_by_digest_and_can_be_put_back(
    registry: Registry, root: Path, tmp_path: Path
) -> None:
    old = registry.catalogue()["CDP_COS"].digest
    shutil.copytree(root / "CDP_COS", tmp_path / "backup")
    write_variant(root, "CDP_COS", 2)
    registry.poll()
    new = registry.catalogue()["CDP_COS"].digest
    assert new != old
    layer = next(iter(registry.cache.load("CDP_COS", new).lora))
    assert not torch.equal(
        registry.cache.load("CDP_COS", old).lora[layer], registry.cache.load("CDP_COS", new).lora[layer]
    )
    shutil.rmtree(root / "CDP_COS")
    shutil.copytree(tmp_path / "backup", root / "CDP_COS")
    registry.poll()
    assert registry.catalogue()["CDP_COS"].digest == old


def kohya_file(adapter: Adapter, tag: str = "") -> bytes:
    """An adapter's LoRA as kohya writes it."""
    halves = {"lora_A": "lora_down", "lora_B": "lora_up"}
    tensors = {}
    for name, tensor in adapter.lora.items():
        layer, half = name.removesuffix(".weight").rsplit(".", 1)
        prefix, _, path = layer.partition(".")
        kohya = f"lora_{'te' if prefix == 'text_encoder' else prefix}_{path.replace('.', '_')}"
        tensors |= {f"{kohya}.{halves[half]}.weight": tensor, f"{kohya}.alpha": torch.tensor(adapter.card.alpha)}
    return save(tensors, {"ss_tag_frequency": json.dumps({"10_a": {tag: 9}})} if tag else {})


def test_a_file_of_others_is_served_under_its_name_with_its_tag(registry: Registry, root: Path) -> None:
    adapter = variant("CDP_X", 3)
    (root / "mug_style.safetensors").write_bytes(kohya_file(adapter, "ohwx mug"))
    (root / "plain.safetensors").write_bytes(kohya_file(adapter))
    registry.poll()
    served = registry.catalogue()
    assert served["mug_style"].card.tokens == {"mug_style": "ohwx mug"} and served["plain"].card.tokens == {}
    found = registry.cache.load("mug_style", served["mug_style"].digest)
    assert all(torch.equal(found.lora[name], tensor) for name, tensor in adapter.lora.items())
    elsewhere = registry.settings.model_copy(update={"cache": f"{root}_other"}).open_cache(registry.base)
    assert elsewhere.load("plain", served["plain"].digest).card == served["plain"].card
    age(root)
    registry.poll()
    registry.poll()
    assert registry.catalogue()["mug_style"] == served["mug_style"] and not registry.refused()
    (root / "mug_style.safetensors").unlink()
    registry.poll()
    assert list(registry.catalogue()) == ["CDP_COS", "CDP_FOOD", "plain"]


def test_files_of_others_that_cannot_be_used_are_refused_by_name(registry: Registry, root: Path) -> None:
    adapter = variant("CDP_X", 3)
    broken = replace(adapter, lora={name: tensor * float("nan") for name, tensor in adapter.lora.items()})
    (root / "broken.safetensors").write_bytes(kohya_file(broken))
    (root / "half.safetensors").write_bytes(kohya_file(adapter)[:-100])
    (root / "my style (1).safetensors").write_bytes(kohya_file(adapter))
    (root / "CDP_COS.safetensors").write_bytes(kohya_file(adapter))
    (root / "loose").mkdir()
    (root / "loose" / LORA_FILE).write_bytes(kohya_file(adapter))
    registry.poll()
    assert list(registry.catalogue()) == ["CDP_COS", "CDP_FOOD"]
    reasons = {"broken": "not finite", "half": "not all of it", "my style (1)": "give it a name"}
    reasons |= {"CDP_COS": "remove one", "loose": "no adapter.json"}
    refused = registry.refused()
    assert refused.keys() == reasons.keys() and all(reasons[name] in refused[name] for name in reasons)


def test_watching_finds_a_new_adapter_by_itself(root: Path, tmp_path: Path, base: BaseInfo) -> None:
    registry = Registry(RegistrySettings(root=str(root), cache=str(tmp_path / "cache"), poll_s=0.01), base)
    registry.poll()
    write_variant(root, "CDP_NEW", 3)

    async def until_it_is_there() -> None:
        watching = asyncio.create_task(registry.watch())
        while "CDP_NEW" not in registry.catalogue():
            await asyncio.sleep(0.01)
        watching.cancel()

    asyncio.run(asyncio.wait_for(until_it_is_there(), 60))


def test_half_copied_is_not_yet_and_the_version_before_goes_on(registry: Registry, root: Path, tmp_path: Path) -> None:
    old = registry.catalogue()["CDP_COS"].digest
    new = write_variant(tmp_path, "CDP_COS", 4)
    for name in (CARD_FILE, "learned_embeds.safetensors"):
        shutil.copy(new / name, root / "CDP_COS" / name)
    registry.poll()
    assert registry.catalogue()["CDP_COS"].digest == old
    assert "not complete yet" in registry.refused()["CDP_COS"]
    shutil.copy(new / LORA_FILE, root / "CDP_COS" / LORA_FILE)
    registry.poll()
    assert registry.catalogue()["CDP_COS"].digest != old
    assert not registry.refused()


def nan(adapter: Adapter) -> Adapter:
    name = next(iter(adapter.lora))
    broken = adapter.lora[name].clone()
    broken.view(-1)[0] = float("nan")
    return replace(adapter, lora={**adapter.lora, name: broken})


def misshapen(adapter: Adapter) -> Adapter:
    name = next(iter(adapter.lora))
    return replace(adapter, lora={**adapter.lora, name: adapter.lora[name][:, :-1].contiguous()})


def strange_layer(adapter: Adapter) -> Adapter:
    name = next(iter(adapter.lora))
    return replace(adapter, lora={**adapter.lora, f"unet.elsewhere.{name}": adapter.lora[name].clone()})


def lonely(adapter: Adapter) -> Adapter:
    name = next(name for name in adapter.lora if "lora_A" in name)
    return replace(adapter, lora={n: t for n, t in adapter.lora.items() if n != name})


def narrow_token(adapter: Adapter) -> Adapter:
    return replace(adapter, embeds=tuple({k: v[:-1].contiguous() for k, v in e.items()} for e in adapter.embeds))


def with_card(**changes: object):
    return lambda adapter: replace(adapter, card=replace(adapter.card, **changes))


BAD = {
    "not finite": nan,
    "expected (": misshapen,
    "no such layer": strange_layer,
    "is missing": lonely,
    "expected (96,)": narrow_token,
    "trained on base": with_card(base_revision="0" * 64),
    "rank 100": with_card(rank=100),
    "rank True": with_card(rank=True),
    "alpha nan": with_card(alpha=float("nan")),
    "alpha 1000": with_card(alpha=10**400),
    "give it a name": with_card(tokens={"a/b": "CDP_BAD"}),
    "tokens": with_card(tokens={"CDP_BAD": 3}),
    "prompt_format": with_card(prompt_format="{token.__class__}"),
    "surrogates not allowed": with_card(prompt_format="{token}\ud800"),
    "is served by adapter": with_card(tokens={"CDP_COS": "CDP_BAD"}),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_adapter_is_refused_with_its_reason_and_the_rest_go_on(
    registry: Registry, root: Path, reason: str
) -> None:
    save_adapter(root / "CDP_BAD", BAD[reason](variant("CDP_BAD", 5)))
    write_variant(root, "CDP_GOOD", 6)
    registry.poll()
    assert list(registry.catalogue()) == ["CDP_COS", "CDP_FOOD", "CDP_GOOD"]
    assert reason in registry.refused()["CDP_BAD"]


def test_a_card_too_deep_to_be_read_is_refused(registry: Registry, root: Path) -> None:
    write_variant(root, "CDP_BAD", 5)
    (root / "CDP_BAD" / CARD_FILE).write_text("[" * 100_000)
    registry.poll()
    assert list(registry.catalogue()) == ["CDP_COS", "CDP_FOOD"] and "not a card" in registry.refused()["CDP_BAD"]


@pytest.mark.parametrize("name", ["CDP BAD", "x" * 65, "caf\u00e9"])
def test_a_folder_whose_name_is_none_is_refused(registry: Registry, root: Path, name: str) -> None:
    save_adapter(root / name, variant("CDP_BAD", 5))
    registry.poll()
    assert "give it a name" in registry.refused()[name]
    assert name not in registry.catalogue()


def test_a_pickle_in_the_card_is_never_opened(registry: Registry, root: Path) -> None:
    folder = write_variant(root, "CDP_BAD", 5)
    card = json.loads((folder / CARD_FILE).read_text())
    card["files"]["../weights.bin"] = "0" * 64
    (folder / CARD_FILE).write_text(json.dumps(card))
    registry.poll()
    assert "only pytorch_lora_weights.safetensors" in registry.refused()["CDP_BAD"]


def test_too_large_an_adapter_is_not_even_read(root: Path, tmp_path: Path, base: BaseInfo) -> None:
    settings = RegistrySettings(root=str(root), cache=str(tmp_path / "cache"), max_adapter_bytes=1000)
    registry = Registry(settings, base)
    registry.poll()
    assert not registry.catalogue()
    assert "takes 1,000" in registry.refused()["CDP_COS"]


def test_a_refused_version_leaves_the_one_before(registry: Registry, root: Path) -> None:
    old = registry.catalogue()["CDP_COS"].digest
    save_adapter(root / "CDP_COS", nan(variant("CDP_COS", 7)))
    registry.poll()
    assert registry.catalogue()["CDP_COS"].digest == old
    assert "not finite" in registry.refused()["CDP_COS"]


def test_the_adapter_called_like_the_category_owns_it(registry: Registry, root: Path) -> None:
    save_adapter(root / "AAA", variant("CDP_COS", 8))
    registry.poll()
    assert "CDP_COS" in registry.catalogue()
    assert "call the folder" in registry.refused()["AAA"]
    shutil.rmtree(root / "CDP_COS")
    registry.poll()
    assert "AAA" in registry.catalogue()


class CountingReads(AdapterCache):
    reads = 0

    def _read(self, relative: str, limit: int) -> bytes:
        type(self).reads += 1
        return super()._read(relative, limit)


def test_what_has_not_changed_is_not_read_again(root: Path, tmp_path: Path, base: BaseInfo) -> None:
    age(root)
    settings = RegistrySettings(root=str(root), cache=str(tmp_path / "cache"))
    cache = CountingReads(open_root(root), tmp_path / "cache", base, max_bytes=1 << 30, max_adapter_bytes=1 << 30)
    registry = Registry(settings, base, cache)
    registry.poll()
    before = cache.reads
    assert before
    for _ in range(3):
        registry.poll()
    assert cache.reads == before


def test_young_files_are_looked_at_again_though_their_size_and_time_stay(registry: Registry, root: Path) -> None:
    old, now = registry.catalogue()["CDP_COS"].digest, time.time_ns()
    folder = write_variant(root, "CDP_COS", 1)
    for seed in (1, 2):
        write_variant(root, "CDP_COS", seed)
        for file in folder.iterdir():
            os.utime(file, ns=(now, now))
        registry.poll()
        assert registry.catalogue()["CDP_COS"].digest != old
        old = registry.catalogue()["CDP_COS"].digest


@pytest.mark.parametrize("why", ["away", "a name that is not UTF-8"])
def test_a_registry_that_cannot_be_listed_leaves_all_as_it_was(registry: Registry, root: Path, why: str) -> None:
    if why == "away":
        root.rename(root.with_name("away"))
    else:
        (root / "CDP_COS" / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"")
    registry.poll()
    assert list(registry.catalogue()) == ["CDP_COS", "CDP_FOOD"]


@pytest.mark.parametrize("kind", ["url", "mock", "without times"])
def test_object_stores_work_like_folders(root: Path, tmp_path: Path, base: BaseInfo, kind: str) -> None:
    where = root.as_uri()
    if kind == "without times":
        fsspec.filesystem("memory").put(str(root), "/registry", recursive=True)
        where = "fsspec+memory://registry"
    settings = RegistrySettings(root=where, cache=str(tmp_path / "cache"))
    cache = settings.open_cache(base)
    if kind == "mock":
        store = pafs._MockFileSystem()
        for file in root.rglob("*.*"):
            path = f"bucket/adapters/{file.relative_to(root)}"
            store.create_dir(path.rpartition("/")[0], recursive=True)
            with store.open_output_stream(path) as stream:
                stream.write(file.read_bytes())
        cache.root = Root(store, "bucket/adapters")
    registry = Registry(settings, base, cache)
    registry.poll()
    assert list(registry.catalogue()) == ["CDP_COS", "CDP_FOOD"]


def test_a_version_that_nobody_has_is_gone(registry: Registry) -> None:
    with pytest.raises(AdapterGone, match="replaced"):
        registry.cache.load("CDP_COS", "0" * 64)
    with pytest.raises(AdapterGone, match="CDP_NONE"):
        registry.cache.load("CDP_NONE", "0" * 64)


def cache_in(folder: Path, root: Path, max_bytes: int = 1 << 30) -> AdapterCache:
    return AdapterCache(open_root(root), folder, read_base_info("toy"), max_bytes=max_bytes, max_adapter_bytes=1 << 30)


def test_another_cache_gets_it_from_the_folder_or_is_sent_it(registry: Registry, root: Path, tmp_path: Path) -> None:
    digest = registry.catalogue()["CDP_COS"].digest
    assert cache_in(tmp_path / "elsewhere", root).load("CDP_COS", digest).card.tokens == {"CDP_COS": "CDP_COS"}
    write_variant(root, "CDP_COS", 9)
    third = cache_in(tmp_path / "third", root)
    with pytest.raises(AdapterGone):
        third.load("CDP_COS", digest)
    third.put(registry.cache.files("CDP_COS", digest))
    assert third.load("CDP_COS", digest).card.tokens == {"CDP_COS": "CDP_COS"}


def test_files_that_are_not_those_of_their_card_are_refused(registry: Registry, root: Path, tmp_path: Path) -> None:
    cos, food = (registry.cache.files(n, registry.catalogue()[n].digest) for n in ("CDP_COS", "CDP_FOOD"))
    cache = cache_in(tmp_path / "other", root)
    for wrong in ({}, {**cos, LORA_FILE: food[LORA_FILE]}, {**cos, "more.bin": b""}, {CARD_FILE: cos[CARD_FILE]}):
        with pytest.raises(InpaintError):
            cache.put(wrong)
    assert not list(cache.folder.iterdir()), "nothing is left of what was refused"


@pytest.mark.parametrize(("where", "words"), [("gs://bucket/cache", "folder of this machine"), ("x://y", "x://y")])
def test_copies_are_kept_on_this_machine(where: str, words: str) -> None:
    with pytest.raises(InpaintError, match=words):
        RegistrySettings(root="toy", cache=where).open_cache(read_base_info("toy"))


def test_a_damaged_copy_is_fetched_again(registry: Registry) -> None:
    entry = registry.catalogue()["CDP_COS"]
    copy = registry.cache.folder / entry.digest / LORA_FILE
    copy.write_bytes(b"damaged")
    assert registry.cache.load("CDP_COS", entry.digest).lora
    assert copy.stat().st_size > 7


def test_a_copy_that_goes_while_its_bytes_are_read_is_fetched_again(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = registry.catalogue()["CDP_COS"].digest
    whole = registry.cache.files("CDP_COS", digest)
    copy, listed = registry.cache.folder / digest, Path.iterdir

    def half_gone(path: Path) -> list[Path]:
        if path == copy:
            (copy / LORA_FILE).unlink(missing_ok=True)
        return list(listed(path))

    monkeypatch.setattr(Path, "iterdir", half_gone)
    assert registry.cache.files("CDP_COS", digest) == whole


def test_the_cache_is_bounded_and_drops_what_was_used_longest_ago(
    registry: Registry, root: Path, tmp_path: Path
) -> None:
    digests = [entry.digest for entry in registry.catalogue().values()]
    versions = [registry.cache.files(name, entry.digest) for name, entry in registry.catalogue().items()]
    cache = cache_in(tmp_path / "small", root, max(sum(map(len, files.values())) for files in versions) + 10)
    for files in versions:
        cache.put(files)
    assert [digest in cache for digest in digests] == [False, True]
    small = cache_in(tmp_path / "smaller", root, 1)
    small.put(versions[0])
    assert digests[0] in small, "the newest stays in any case"
    for name, hours in ((".new-killed", 2), (".new-at-work", 0)):
        (small.folder / name).mkdir()
        (small.folder / name / LORA_FILE).write_bytes(b"half")
        os.utime(small.folder / name, (time.time() - 3600 * hours,) * 2)
    small.put(versions[1])
    assert {path.name for path in small.folder.iterdir()} == {digests[1], ".new-at-work"}
