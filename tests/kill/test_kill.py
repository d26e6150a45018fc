"""A run that is killed again and again, anywhere in its life, ends like one that nothing has disturbed.

KILL_ROUNDS=30 KILL_SEED=1 pytest tests/kill: more rounds, other places.
"""

import multiprocessing
import os
import random
import shutil
from pathlib import Path

import pytest

ROUNDS = int(os.environ.get("KILL_ROUNDS", "4"))
SEED = os.environ.get("KILL_SEED", "0")

MOST_DEATHS = 3
"""A round; the life after the last one is left alone."""

pytestmark = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="needs processes that are forked"
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Kind of run -> (folder with the data alone, its life, its traces); made when first asked for."""
    from comfyui_longcat.tests.kill import life

    known = {}

    def of(kind: str) -> tuple[Path, life.Life, dict]:
        if kind not in known:
            drawn, home = (tmp_path_factory.mktemp(kind) / name for name in ("drawn", "home"))
            life.draw_data(kind, drawn)
            shutil.copytree(drawn, home)
            known[kind] = drawn, life.live(kind, home), life.traces(home)
        return known[kind]

    return of


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_killed_run_ends_like_an_undisturbed_one(number, undisturbed, tmp_path):
    from comfyui_longcat.tests.kill import life

    chance = random.Random(f"{SEED} {number}")
    kind = life.KINDS[number % 4 // 3]  # every fourth round; clips take longer to sample
    drawn, whole, wanted = undisturbed(kind)
    home = tmp_path / "home"
    shutil.copytree(drawn, home)
    lived, deaths = None, []
    while lived is None and len(deaths) < MOST_DEATHS:
        # In turn: what happens while nothing is written is hit by the clock only. Each life has less to do.
        share = chance.random() / (1 + len(deaths))
        death = (
            life.Death(before_write=1 + int(share * whole.writes))
            if (number + len(deaths)) % 2
            else life.Death(after_seconds=0.01 + share * whole.seconds)
        )
        lived = life.live(kind, home, death)
        deaths += [death] if lived is None else []
        life.a_day_passes(home)
    print(f"round {number}, {kind}, died {len(deaths)} times: {deaths}")
    lived = lived or life.live(kind, home)
    assert lived.losses == whole.losses
    assert lived.lora == home / "loras" / f"{life.NAME}.safetensors"
    assert life.traces(home) == wanted
