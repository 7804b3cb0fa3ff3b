import pytest
from wan_train.core.errors import ConfigError
from wan_train.tools.nano.settings import Settings, changed, differing, field_hints, flat


@pytest.mark.parametrize(
    ("name", "text", "get", "value"),
    [
        ("clips", "7", lambda s: s.clips, 7),
        ("stages", "low", lambda s: s.stages, ("low",)),
        ("stages", "high+low", lambda s: s.stages, ("high", "low")),
        ("adapter.rank", "4", lambda s: s.adapter.rank, 4),
        ("adapter.targets", "ffn+self_attn", lambda s: s.adapter.targets, ("ffn", "self_attn")),
        ("optimizer.learning_rate", "3e-3", lambda s: s.optimizer.learning_rate, 3e-3),
        ("optimizer.name", "adamw8bit", lambda s: s.optimizer.name, "adamw8bit"),
        ("precision", "fp8", lambda s: s.precision, "fp8"),
        ("memory.checkpointing", "true", lambda s: s.memory.checkpointing, True),
    ],
)
def test_settings_are_changed_by_name(name, text, get, value):
    assert get(changed(Settings(), name, text)) == value
    assert get(Settings()) != value or name == "stages"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("adapter.size", "4", "no setting 'adapter.size'; the settings are adapter.rank, adapter.alpha"),
        ("adaptor.rank", "4", "no setting 'adaptor.rank'"),
        ("adapter", "4", "no setting 'adapter'"),
        ("clips.rank", "4", "no setting 'clips.rank'"),
        ("adapter.rank", "four", "adapter.rank is 'four'; it must be a whole number"),
        ("adapter.rank", "4.5", "adapter.rank is '4.5'; it must be a whole number"),
        ("adapter.rank", "0", "rank must be at least 1, got 0"),
        ("optimizer.name", "sgd", "optimizer is 'sgd': choose one of adamw, adamw8bit"),
        ("memory.checkpointing", "yes", "settings.memory.checkpointing is 'yes'; it must be true or false"),
        ("stages", "both", "settings.stages.* is 'both'; it must be one of 'high', 'low'"),
        ("stages", "low+low", "each once"),
        ("device", "cpu", "no setting 'device'"),
        ("clips", "0", "clips must be at least 1, got 0"),
        ("timesteps.sigma_min", "0.5", "leave sigma_min and sigma_max out"),
    ],
)
def test_unknown_settings_and_bad_values_are_refused_by_name(name, text, message):
    with pytest.raises(ConfigError, match=message):
        changed(Settings(), name, text)


def test_every_setting_can_be_set_to_what_it_is():
    values = flat(Settings())
    assert set(values) == set(field_hints())
    for name, text in values.items():
        assert changed(Settings(), name, text) == Settings()


def test_what_is_as_the_defaults_say_is_left_out_of_a_key():
    assert differing(Settings()) == {}
    assert differing(changed(Settings(), "adapter.rank", "4")) == {"adapter.rank": "4"}
