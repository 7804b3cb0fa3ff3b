import pytest
from wan_train.core.errors import ConfigError
from wan_train.tests.tools.nano.small import STAR
from wan_train.tools.nano.plan import Run, combinations, parse_varied
from wan_train.tools.nano.settings import Settings, changed


def test_every_combination_is_made_once():
    varied = parse_varied(["adapter.rank=4,16,4", "adapter.targets=ffn,self_attn+ffn"])
    made = combinations(Settings(clips=3), varied)
    assert [(s.adapter.rank, s.adapter.targets) for s in made] == [
        (4, ("ffn",)), (4, ("self_attn", "ffn")), (16, ("ffn",)), (16, ("self_attn", "ffn")),
    ]  # fmt: skip
    assert {s.clips for s in made} == {3}
    assert combinations(Settings(), []) == [Settings()]


@pytest.mark.parametrize("text", ["adapter.rank", "adapter.rank=", "adapter.rank=4,"])
def test_malformed_variations_are_refused(text):
    with pytest.raises(ConfigError, match="FIELD=VALUE,VALUE"):
        parse_varied([text])


def test_a_setting_is_named_by_its_stages_and_what_differs_from_the_defaults():
    assert Run(STAR, Settings()).setting == "stages=high+low"
    settings = changed(changed(Settings(clips=5), "adapter.targets", "ffn+self_attn"), "loop.seed", "9")
    assert Run(STAR, settings).setting == "adapter.targets=ffn+self_attn clips=5 stages=high+low"
