"""The key of a run: those of version 0.1.0 stay as they were, and later options change none of them."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from wan_train.core.errors import RunError
from wan_train.core.settings.job import job_from_json
from wan_train.core.settings.loss import LossOptions
from wan_train.core.settings.option import Options, key_values, option

RECORDED = json.loads((Path(__file__).parent / "keys_of_0.1.0.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", RECORDED)
def test_jobs_of_version_0_1_0_have_their_keys(name):
    recorded = RECORDED[name]
    assert job_from_json(json.dumps(recorded["job"])).key == recorded["key"]


def test_what_decides_the_weights_makes_another_key():
    assert (
        len({recorded["key"] for recorded in RECORDED.values()}) == len(RECORDED) - 2
    )  # rhythm, memory: as the defaults
    job = job_from_json(json.dumps(RECORDED["defaults"]["job"]))
    assert replace(job, loop=replace(job.loop, token_budget=4096)).key != job.key
    assert replace(job, loss=LossOptions()).key == job.key


def test_a_later_option_is_in_the_key_only_where_it_differs_from_its_first_default():
    @dataclass(frozen=True, kw_only=True)
    class Group(Options, group="group"):
        old: int = option(1, help="Of the first version.")
        later: int = option(5, help="Came later, and has another default by now.", born=2, at_birth=3)
        place: str = option("a", help="Decides nothing.", in_key=False)
        rhythm: int = option(9, help="Decided nothing in the first version either.", in_key=False, key_holds=1)

    assert key_values(Group()) == {"old": 1, "later": 5, "rhythm": 1}
    assert key_values(Group(old=2, later=3, place="b", rhythm=4)) == {"old": 2, "rhythm": 1}


def test_a_later_option_names_its_first_default():
    with pytest.raises(AssertionError, match="at_birth"):
        option(1, help="Came later.", born=2)


def test_a_job_that_is_no_json_is_told_in_one_clause():
    with pytest.raises(RunError, match=r"^job can't be read, as it is not valid JSON: .*: restore it from a backup"):
        job_from_json("{")
    with pytest.raises(RunError, match=r"^job can't be read, as it is not UTF-8: restore it from a backup"):
        job_from_json(b"\xff")
