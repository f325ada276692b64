"""Regular expressions of adapter configurations are tried in a bounded process before peft uses them."""

import time

import pytest

from ldm.errors import UserError
from ldm.models.adapters import patterns
from ldm.models.adapters.patterns import FORMS, check_patterns

NAMES = [
    f"down_blocks.{i}.attentions.{j}.transformer_blocks.0.attn1.to_q" for i in range(3) for j in range(2)
]


@pytest.mark.parametrize("key", FORMS)
@pytest.mark.parametrize(
    "good", ["to_q", "^down_blocks.0", r".*\.attn\d\.to_(q|k|v)", r"(?!mid).*to_q", r"(\w+)\.0\..*\1.*"]
)
def test_expressions_of_real_files_pass(key, good):
    check_patterns("adapter_config.json", key, [good], NAMES)


@pytest.mark.parametrize("key", FORMS)
@pytest.mark.parametrize("broken", ["(", "*a", "[z-a]", "(?P<a", "a{2,1}", "(" * 5000, "\ud800("])
def test_a_broken_expression_is_named_with_its_key(key, broken):
    with pytest.raises(UserError, match=rf"adapter_config.json: {key} .* is not a regular expression"):
        check_patterns("adapter_config.json", key, ["to_q", broken], NAMES)


@pytest.mark.parametrize("hanging", [r"(\w+\.?)+!", r"(\w|\.|\w\w)+$!"], ids=["plus", "or"])
def test_catastrophic_backtracking_is_refused_in_time(monkeypatch, hanging):
    monkeypatch.setattr(patterns, "_TRY_ALL", patterns._TRY_ALL.replace("(5, 5)", "(1, 1)"))
    start = time.monotonic()
    with pytest.raises(UserError, match="takes too much time"):
        check_patterns("adapter_config.json", "rank_pattern", ["to_q", hanging], NAMES)
    assert time.monotonic() - start < 30


def test_too_many_names_are_refused_and_many_are_tried():
    with pytest.raises(UserError, match="1,000,000 entries"):
        check_patterns("adapter_config.json", "target_modules", ["to_q"] * 1_000_000, NAMES)
    check_patterns("adapter_config.json", "rank_pattern", [f"layer.{i}" for i in range(2000)], NAMES)
