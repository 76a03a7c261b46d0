"""Chat templates that want to loop for ever, fill the memory or read the environment: each is refused in one line.

They render in a child process with little memory, in which a hole would show as a MemoryError or as a timeout.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest

from tests.chat_templates import CASES
from tritgguf.converter.tokenizer.template_keys import end_of_turn
from tritgguf.runtime.chat.chat_template import ChatTemplate

MEBI = "{% set x = 'a' * 1000000 %}"
TIMES = "{% for i in range(100000) %}"
GROWING = "{% set ns = namespace(x=START) %}{% for i in range(100) %}{% set ns.x = NEXT %}{% endfor %}{{ ns.x }}"


def growing(start: str, following: str) -> str:
    return GROWING.replace("START", start).replace("NEXT", following)


QUICK = {
    # numbers and products
    "text times number": "{{ 'a' * 10**10 }}",
    "number times text": "{{ 10**10 * 'a' }}",
    "list times number": "{{ [1] * 10**10 }}",
    "power": "{{ 10**(10**9) }}",
    "squares": growing("7", "ns.x * ns.x"),
    "hexadecimal": "{{ ('f' * 1000000)|int(0, 16) }}",
    "round": "{{ 1.5|round(10**9, 'floor') }}",
    "bytes of a number": "{{ (1).to_bytes(10**10, 'big') }}",
    # widths
    "center": "{{ 'a'|center(10**10) }}",
    "center by its name": "{{ ('a'|attr('center'))(10**10) }}",
    "center of each": "{{ ['a']|map('center', 10**10)|list }}",
    "center of a block": "{% filter center(10**10) %}a{% endfilter %}",
    "center of a set block": "{% set x | center(10**10) %}a{% endset %}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "zfill": "{{ 'a'.zfill(10**10) }}",
    "tabs": "{{ '\t\t'.expandtabs(10**9) }}",
    "indent": "{{ 'a\nb'|indent(10**10) }}",
    "indent by a text": MEBI + "{{ x|replace('a', '\n')|indent(x) }}",
    "JSON": "{{ [[[1]]]|tojson(indent=10**9) }}",
    "width": "{{ '%1000000000d' % 1 }}",
    "width as a value": "{{ '%*d' % (10**9, 1) }}",
    "precision": "{{ '%.1000000000f' % 1.5 }}",
    "format filter": "{{ '%1000000000d'|format(1) }}",
    "format method": "{{ '{:1000000000}'.format(1) }}",
    "format method with a value": "{{ '{:{w}}'.format(1, w=10**9) }}",
    "format_map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "time": "{{ strftime_now('%c' * 1000000) }}",
    # texts for each character or item
    "replace": MEBI + "{{ x|replace('a', x) }}",
    "replace method": MEBI + "{{ x.replace('', x) }}",
    "join": MEBI + "{{ range(100000)|join(x) }}",
    "join method": MEBI + "{{ x.join(x) }}",
    "translate": MEBI + "{{ x.translate({97: x}) }}",
    "bytes": MEBI + "{{ x.encode().replace('a'.encode(), x.encode()) }}",
    "slice filter": "{{ 'abc'|slice(10**9)|list }}",
    "batch": "{{ range(3)|batch(10**10, 'x')|list }}",
    # what doubles
    "sums": growing("'ab'", "ns.x + ns.x"),
    "joined": growing("'ab'", "ns.x ~ ns.x"),
    "namespaces": growing("1", "namespace(a=ns.x, b=ns.x)"),
    "blocks": "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}"
    "{% set ns.x = y %}{% endfor %}",
    # long texts again and again
    "output": MEBI + TIMES + "{{ x }}{% endfor %}",
    "slices": MEBI + TIMES + "{% set y = x[1:] %}{% endfor %}",
    "in": MEBI + TIMES + "{% if 'b' in x %}{% endif %}{% endfor %}",
    "is in": MEBI + TIMES + "{% if 'b' is in x %}{% endif %}{% endfor %}",
    "select in": MEBI + "{{ (['b'] * 100000)|select('in', x)|list }}",
    "equal": MEBI + "{% set y = 'a' * 1000000 %}" + TIMES + "{% if x == y %}{% endif %}{% endfor %}",
    "count": MEBI + TIMES + "{% set y = x.count('b') %}{% endfor %}",
    "upper": MEBI + TIMES + "{% set y = x|upper %}{% endfor %}",
    "split": MEBI + TIMES + "{% set y = x.split('a') %}{% endfor %}",
    "error": "{{ raise_exception('a' * 10**10) }}",
    # the rest
    "calls of itself": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "loop in itself": "{% for x in [[1, 2]] recursive %}{{ loop(range(5)) }}{{ loop(range(5)) }}{% endfor %}",
    "words": "{{ lipsum(10**9) }}",
    "wrapped": MEBI + "{{ x|wordwrap(1) }}",
    "links": MEBI + "{{ x|urlize }}",
    "nested parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "nested loops": "{% for a in [1] %}" * 50 + "{% endfor %}" * 50,
    "long": "{{ x }}" * 30_000,
    "objects": "{{ ''.__class__.__mro__ }}",
    "environment": "{{ ('{0.__init__.__globals__}'|attr('format'))(namespace) }}",  # jinja2 before 3.1.6 shows them
}
SLOW = {
    "loops": TIMES + TIMES + "{% endfor %}{% endfor %}",
    "loops with a condition": TIMES + "{% for j in range(100000) if false %}{% endfor %}{% endfor %}",
    "text in loops": TIMES + TIMES + "a" * 50 + "{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "lists": growing("[1]", "ns.x + ns.x"),
    "nested lists": growing("[1]", "[ns.x, ns.x]"),
    "nested tuples": growing("(1,)", "(ns.x, ns.x)"),
    "sum of lists": "{{ ([[1]] * 100000)|sum(start=[]) }}",
    "sorted": TIMES + "{% set y = range(100000)|sort %}{% endfor %}",
}
CHILD = """
import json, sys
from tritgguf.converter.errors import EngineError
from tritgguf.runtime.chat.chat_template import ChatTemplate
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
except ImportError:  # Windows
    pass
told = {}
for name, source in json.load(sys.stdin).items():
    try:
        told[name] = f"rendered {ChatTemplate(source).render([{'role': 'user', 'content': 'Hi'}]):.50}"
    except EngineError as error:
        told[name] = f"error: {error}"
json.dump(told, sys.stdout)
"""


@pytest.mark.parametrize("attacks", [QUICK, SLOW], ids=["quick", "slow"])
def test_what_a_hostile_template_does_is_refused_in_one_line(attacks: dict[str, str]) -> None:
    command = [sys.executable, "-c", CHILD]
    child = subprocess.run(command, input=json.dumps(attacks), capture_output=True, text=True, timeout=300)
    assert (child.returncode, child.stderr) == (0, "")
    told = json.loads(child.stdout)
    assert told.keys() == attacks.keys()
    for name, line in told.items():
        assert line.startswith("error: the file's chat template"), (name, line)
        assert "\n" not in line
        assert "MemoryError" not in line, name
        assert len(line) < 500


def test_a_conversion_goes_on_without_a_hostile_template() -> None:
    for source in ("{{ 'a' * 10**10 }}", MEBI + TIMES + "{{ x }}{% endfor %}"):
        assert end_of_turn(source, ["</s>"], {}) is None


def test_long_conversations_render() -> None:
    """The longest texts and the most messages that a context of a million tokens holds."""
    document = "word " * 500_000
    talk = [{"role": ("user", "assistant")[number % 2], "content": f"{number}"} for number in range(3001)]
    for name in ("qwen3", "llama3", "mistral-v3"):
        case = CASES[name]
        template = ChatTemplate(case.jinja, bos=case.bos, eos=case.eos)
        assert document.strip() in template.render([{"role": "user", "content": document}])
        assert "3000" in template.render(talk)


def test_each_thread_has_a_budget_of_its_own() -> None:
    template = ChatTemplate(CASES["qwen3"].jinja)
    messages = [{"role": "user", "content": "Hi"}]
    expected, texts = template.render(messages), []
    threads = [
        threading.Thread(target=lambda: texts.extend(template.render(messages) for _ in range(20))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [expected] * 80
