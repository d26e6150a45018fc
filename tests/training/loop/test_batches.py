"""Order and loading of batches, on real cache files."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from comfyui_longcat.training.caches.cache import Cache, CachedRecord, CacheFolders
from comfyui_longcat.training.data.records import Record, Source, TrainingSet
from comfyui_longcat.training.errors import CacheError, DataError
from comfyui_longcat.training.files import write_safetensors
from comfyui_longcat.training.loop.batches import BatchOrder, load_batch
from comfyui_longcat.training.settings.dataset import DatasetConfig

SQUARE, WIDE = (64, 64), (128, 64)


def cached_record(folder, number, bucket, prompt_tokens=6):
    """A record whose files hold its own number everywhere."""
    paths = {kind: folder / f"{kind}-{number}.safetensors" for kind in ("target", "reference", "prompt", "empty")}
    latents = torch.full((1, 16, bucket[1] // 8, bucket[0] // 8), float(number))
    prompt_embeds = torch.full((1, prompt_tokens, 4), float(number), dtype=torch.bfloat16)
    write_safetensors(paths["target"], {"latents": latents}, {})
    write_safetensors(paths["reference"], {"latents": latents + 0.5}, {})
    write_safetensors(paths["prompt"], {"prompt_embeds": prompt_embeds}, {})
    write_safetensors(paths["empty"], {"prompt_embeds": -prompt_embeds}, {})
    record = Record(
        name=f"{number:03}",
        target=folder / f"{number}.png",
        references=(folder / f"{number}.png",),
        caption="",
        bucket=bucket,
    )
    return CachedRecord(
        record=record,
        latents=paths["target"],
        cond_latents=(paths["reference"],),
        prompt_embeds=paths["prompt"],
        empty_prompt_embeds=paths["empty"],
    )


def cache_of(folder, records):
    dataset = TrainingSet(sources=(Source(targets=DatasetConfig()),), records=tuple(r.record for r in records))
    folders = CacheFolders(targets=folder, references=folder / "references")
    return Cache(model_family="longcat_image", dataset=dataset, folders=folders, records=tuple(records))


@pytest.fixture
def mixed(tmp_path):
    """Seven square records and four wide ones, with their prompts on disk."""
    buckets = [SQUARE] * 7 + [WIDE] * 4
    return cache_of(tmp_path, [cached_record(tmp_path, n, bucket) for n, bucket in enumerate(buckets)])


def names(batches):
    return [tuple(record.record.name for record in batch) for batch in batches]


def epoch_of(order, epoch):
    first = epoch * order.batches_per_epoch
    return [order.batch(n) for n in range(first, first + order.batches_per_epoch)]


def test_an_epoch_holds_every_record_once_in_batches_of_one_bucket(mixed):
    batches = epoch_of(BatchOrder(mixed, batch_size=3, seed=1), 0)
    assert sorted(len(batch) for batch in batches) == [1, 1, 3, 3, 3]  # 7 = 3 + 3 + 1 and 4 = 3 + 1
    assert Counter(name for batch in names(batches) for name in batch) == {f"{n:03}": 1 for n in range(11)}
    assert all(len({record.record.bucket for record in batch}) == 1 for batch in batches)


def test_repeats_show_each_record_so_many_times_more(mixed):
    often = [replace(cached, record=replace(cached.record, repeats=2)) for cached in mixed.records[:5]]
    repeated = cache_of(mixed.folders.targets, [*often, *mixed.records[5:]])
    batches = epoch_of(BatchOrder(repeated, batch_size=4, seed=1), 0)
    seen = Counter(name for batch in names(batches) for name in batch)
    assert seen == {f"{n:03}": 3 if n < 5 else 1 for n in range(11)}


def test_a_batch_holds_prompts_of_one_length(tmp_path):
    """Four records of one bucket, two lengths of prompt: never padded, never refused."""
    cache = cache_of(tmp_path, [cached_record(tmp_path, n, SQUARE, prompt_tokens=6 + n % 2) for n in range(4)])
    batches = epoch_of(BatchOrder(cache, batch_size=4, seed=1), 0)
    assert sorted(sorted(batch) for batch in names(batches)) == [["000", "002"], ["001", "003"]]
    assert {load_batch(batch).prompt_embeds.shape for batch in batches} == {(2, 6, 4), (2, 7, 4)}
    assert BatchOrder(cache, batch_size=1, seed=1).batches_per_epoch == 4


def with_captions(folder, cached, count):
    more = [folder / f"more-{cached.record.name}-{number}.safetensors" for number in range(1, count)]
    for number, path in enumerate(more, 1):
        write_safetensors(path, {"prompt_embeds": torch.full((1, 6, 4), 100.0 * number, dtype=torch.bfloat16)}, {})
    record = replace(cached.record, more_captions=tuple(path.stem for path in more))
    return replace(cached, record=record, more_prompt_embeds=tuple(more))


def test_of_several_captions_one_is_drawn_each_time(tmp_path):
    single = [cached_record(tmp_path, number, SQUARE) for number in range(4)]
    several = [*single[:3], with_captions(tmp_path, single[3], 3)]
    plain, drawn = (BatchOrder(cache_of(tmp_path, records), batch_size=2, seed=5) for records in (single, several))
    found = []
    for number in range(60):
        one, other = plain.batch(number), drawn.batch(number)
        # The order, and what has one caption, are what they were.
        assert names([one]) == names([other])
        assert [a for a in one if a.record.name != "003"] == [b for b in other if b.record.name != "003"]
        found += [cached.prompt_embeds for cached in other if cached.record.name == "003"]
    counts = Counter(found)
    choices = {single[3].prompt_embeds, *several[3].more_prompt_embeds}
    assert set(counts) == choices and min(counts.values()) >= 4
    again = BatchOrder(cache_of(tmp_path, several), batch_size=2, seed=5)
    assert [again.batch(number) for number in (59, 3, 20)] == [drawn.batch(number) for number in (59, 3, 20)]
    assert load_batch([cached_record_of(drawn, "003")]).prompt_embeds.shape == (1, 6, 4)
    one, other = cache_of(tmp_path, single), cache_of(tmp_path, several)
    assert one.fingerprint() != other.fingerprint()


def cached_record_of(order, name):
    return next(cached for number in range(9) for cached in order.batch(number) if cached.record.name == name)


def test_a_lost_prompt_is_named_before_the_first_batch(mixed):
    mixed.records[3].prompt_embeds.unlink()
    with pytest.raises(CacheError, match=r"prompt-3\.safetensors.*Run Cache Text again"):
        BatchOrder(mixed, batch_size=2, seed=1)


def test_records_with_and_without_references_never_share_a_batch(tmp_path):
    records = [cached_record(tmp_path, n, SQUARE) for n in range(4)]
    records[1:3] = [replace(record, cond_latents=()) for record in records[1:3]]
    batches = epoch_of(BatchOrder(cache_of(tmp_path, records), batch_size=4, seed=1), 0)
    assert sorted(sorted(batch) for batch in names(batches)) == [["000", "003"], ["001", "002"]]


def test_a_batch_depends_on_seed_and_number_alone(mixed):
    forwards = BatchOrder(mixed, batch_size=2, seed=7)
    expected = names(forwards.batch(n) for n in range(40))
    backwards = BatchOrder(mixed, batch_size=2, seed=7)
    assert names(backwards.batch(n) for n in reversed(range(40))) == expected[::-1]
    assert names([BatchOrder(mixed, batch_size=2, seed=7).batch(33)]) == expected[33:34]
    assert names(BatchOrder(mixed, batch_size=2, seed=8).batch(n) for n in range(40)) != expected


def test_epochs_differ_in_order_and_buckets_mix(mixed):
    order = BatchOrder(mixed, batch_size=1, seed=3)
    first, second = names(epoch_of(order, 0)), names(epoch_of(order, 1))
    assert first != second and sorted(first) == sorted(second)
    buckets = [batch[0].record.bucket for batch in epoch_of(order, 0)]
    assert buckets not in ([SQUARE] * 7 + [WIDE] * 4, [WIDE] * 4 + [SQUARE] * 7)


def test_the_order_neither_reads_nor_moves_the_global_generator(mixed):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = names(BatchOrder(mixed, batch_size=2, seed=7).batch(n) for n in range(12))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert names(BatchOrder(mixed, batch_size=2, seed=7).batch(n) for n in range(12)) == one


def test_a_far_batch_is_as_cheap_as_the_first(mixed):
    # Counting up to it would not end.
    assert len(BatchOrder(mixed, batch_size=2, seed=7).batch(10**12)) in (1, 2)


def test_no_records_are_refused(tmp_path):
    with pytest.raises(DataError, match="no record"):
        BatchOrder(cache_of(tmp_path, []), batch_size=1, seed=0)


def test_loaded_tensors_are_stacked_in_the_records_order(tmp_path):
    records = [cached_record(tmp_path, n, WIDE) for n in (3, 1)]
    batch = load_batch(records)
    assert batch.latents.shape == (2, 16, 8, 16) and batch.latents.dtype == torch.float32
    assert batch.latents[:, 0, 0, 0].tolist() == [3, 1]
    assert [ref[:, 0, 0, 0].tolist() for ref in batch.cond_latents] == [[3.5, 1.5]]
    assert batch.prompt_embeds.shape == (2, 6, 4) and batch.prompt_embeds.dtype == torch.bfloat16
    assert batch.prompt_embeds[:, 0, 0].tolist() == [3, 1]
    assert batch.empty_prompt_embeds[:, 0, 0].tolist() == [-3, -1]
    assert batch.bucket == WIDE and batch.names == ("003", "001")


def test_records_without_references_load(tmp_path):
    record = replace(cached_record(tmp_path, 2, SQUARE), cond_latents=())
    assert load_batch([record]).cond_latents == ()


def test_unequal_prompt_lengths_are_refused_and_never_padded(tmp_path):
    records = [cached_record(tmp_path, 0, SQUARE, prompt_tokens=6), cached_record(tmp_path, 1, SQUARE, prompt_tokens=7)]
    with pytest.raises(CacheError) as caught:
        load_batch(records)
    assert all(str(record.prompt_embeds) in str(caught.value) for record in records)
    assert "[1, 6, 4]" in str(caught.value) and "[1, 7, 4]" in str(caught.value)


def test_a_cache_without_text_is_refused_with_the_node_to_add(tmp_path):
    record = replace(cached_record(tmp_path, 5, SQUARE), empty_prompt_embeds=None)
    with pytest.raises(CacheError, match="005 has no cached instruction.*Cache Text"):
        load_batch([record])


def test_a_batch_outlives_its_files(tmp_path):
    record = cached_record(tmp_path, 4, SQUARE)
    batch = load_batch([record])
    with record.latents.open("rb+") as file:
        file.write(bytes(record.latents.stat().st_size))
    assert batch.latents.unique().tolist() == [4]
