"""Templates that would take for ever, or fill the memory, end in a message; what questions need goes on as ever."""

from __future__ import annotations

import time

import pytest

from srum_ds.common.errors import UserError
from srum_ds.rewards.templates import Template

NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{{ prompt }}"
DOUBLING = "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x OP ns.x %}{% endfor %}{{ ns.x }}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (NESTED, "more than 100,000 turns"),
        ("{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}", "turns"),
        ("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        (
            "{% for a in range(99999) recursive %}{{ loop(range(99999)) if loop.depth < 4 }}{% endfor %}",
            "turns",
        ),
        ("{{ 9 ** 999999999 }}", "a power of hundreds of digits"),
        ("{{ 'a' * 10 ** 10 }}", "a product"),
        ("{{ [0] * 10 ** 10 }}", "a product"),
        (DOUBLING.replace("OP", "~"), "a text of more than"),
        (DOUBLING.replace("OP", "+"), "a sum of more than"),
        (DOUBLING.replace("'ab'", "3").replace("OP", "*"), "more than a hundred digits"),
        ("{{ 'x' | center(2000000000) }}", "center of a number above"),
        ("{{ 'x'.zfill(2000000000) }}", "zfill of a number above"),
        ("{{ '%2000000000d' % 5 }}", "wider than a question"),
        ("{{ '%2000000000d' | format(5) }}", "wider than a question"),
        ("{{ '{:>2000000000}'.format(1) }}", "wider than a question"),
        ("{{ '{:>{w}}'.format(1, w=2000000000) }}", "of a number above"),
        ("{{ range(99999) | map('string') | join('x' * 900000) }}", "join by a text"),
        ("{{ 'a' | replace('a', 'b' * 999999) | replace('b', 'c' * 999999) }}", "replace might make"),
        ("{% for a in range(99999) %}{{ 'x' | center(99999) }}{% endfor %}", "turns|letters"),
        (
            "{% set x %}{% for a in range(99999) %}{{ 'x' | center(99999) }}{% endfor %}{% endset %}{{ x }}",
            "turns|letters",
        ),
        ("{% for a in nothing %}{% endfor %}", "uses nothing, which is not given"),
    ],
)
def test_what_would_take_for_ever_is_refused_at_once(text: str, said: str) -> None:
    began = time.process_time()
    with pytest.raises(UserError, match=f"^judge template mine .*({said})"):
        Template(text, "mine", "0").render(prompt="a red circle")
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "{% for w in prompt.split() %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{% endfor %}",
            "1/3,2/3,3/3",
        ),
        ("{% for a in [] %}{{ a }}{% else %}none of {{ prompt | length }}{% endfor %}", "none of 12"),
        ("{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k ~ v ~ '!' }}{% endfor %}", "a1!b2!"),
        ("{% for a, *b in [(1, 2, 3)] if a %}{{ a }}{% endfor %}", None),
        ("{% for n in [[1, [2]], 3] recursive %}{{ loop(n) if n is sequence else n }};{% endfor %}", "1;2;;;3;"),
        (
            "{{ ['b', 'a'] | sort | join(', ') | upper | center(9) }}|{{ 3 * 4 + 2 ** 3 }}|{{ 'ab' * 2 }}",
            "A, B  |20|abab",
        ),
        (
            "{% macro f(x, context=1, obj=2) %}{{ x }}{{ context }}{{ obj }}{% endmacro %}{{ f(0, context=5, obj=6) }}",
            "056",
        ),
        ("{{ '%05.1f' % 3.14159 }} {{ '{:.2f}'.format(2.5) }} {{ '%s' | format(prompt) }}", "003.1 2.50 a red circle"),
        ("{{ prompt | replace('red', 'blue') }} {{ range(1500) | list | length }}", "a blue circle 1500"),
    ],
)
def test_what_questions_need_goes_on(text: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(UserError, match="line 1"):
            Template(text, "mine", "0")
        return
    assert Template(text, "mine", "0").render(prompt="a red circle") == expected


def test_each_rendering_has_turns_of_its_own() -> None:
    template = Template("{% for a in range(60000) %}{% endfor %}{{ prompt }}", "mine", "0")
    assert [template.render(prompt=word) for word in "abc"] == ["a", "b", "c"]
