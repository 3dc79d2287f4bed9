"""`suture fmt`: one layout, which says the same, keeps every comment, and changes nothing the second time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suture.frontends.script import ast
from suture.frontends.script.ast import Span
from suture.frontends.script.format import WIDEST_LINE, format_source, format_statement
from suture.frontends.script.parser import parse

NOWHERE = Span(1, 1, 1, 1)

LAYOUTS = [
    (  # spacing
        'suture   1\nmodel net=torch "a:b"   input  f32[ batch,3 ,4]\nprune net keep .5'.replace(" .5", " 0.5"),
        'suture 1\nmodel net = torch "a:b" input f32[batch, 3, 4]\nprune net keep 0.5\n',
    ),
    (  # the order of a model's clauses, and of a query's parts
        'suture 1\nmodel n = torch "a:b" input f32[2] weights "w" args 1,x = 2\nprune n keep 0.5 where op==linear at "a","b"',
        'suture 1\nmodel n = torch "a:b" args 1, x=2 weights "w" input f32[2]\nprune n keep 0.5 at "a", "b" where op == linear\n',
    ),
    (  # trailing comments of neighbouring lines share a column; a blank line starts anew
        "suture 1\nfold net # short\nprune net keep 0.5#long\n\n\n\nfold net     # alone",
        "suture 1\nfold net            # short\nprune net keep 0.5  # long\n\nfold net  # alone\n",
    ),
    (  # comments of their own stay where they are
        "\n\n#head\nsuture 1\n\n   # indented\n# two\n\nfold net\n# end\n\n\n# very end\n\n",
        "# head\nsuture 1\n\n# indented\n# two\n\nfold net\n# end\n\n# very end\n",
    ),
    (  # a comment between the lines of a statement moves above it
        'suture 1\nprune net # sites\n  at "x"\n  # ratio\n  keep 0.5 # end\nfold net',
        'suture 1\n# sites\n# ratio\nprune net at "x" keep 0.5  # end\nfold net\n',
    ),
    (  # brackets that mean something stay, others go
        "suture 1\ncheck ((a.macs)-(b.macs-1))/2 < -(3*a.params)+((1*2)*3)*(4/(5*6))",
        "suture 1\ncheck (a.macs - (b.macs - 1)) / 2 < -(3 * a.params) + 1 * 2 * 3 * (4 / (5 * 6))\n",
    ),
]


@pytest.mark.parametrize(("source", "expected"), LAYOUTS)
def test_layout(source: str, expected: str) -> None:
    assert format_source(source) == expected
    assert format_source(expected) == expected
    assert parse(source) == parse(expected)


def test_a_wide_statement_takes_a_line_for_each_clause() -> None:
    source = f'suture 1\nprune net at "{"a" * 60}", "{"b" * 60}" keep 0.5  # why\n'
    expected = f'suture 1\nprune net\n    at "{"a" * 60}", "{"b" * 60}"\n    keep 0.5  # why\n'
    assert format_source(source) == expected
    assert format_source(expected) == expected


# ------------------------------------------------------------------------------------------- any script at all

words = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
names = words.map(lambda text: ast.Name(text, NOWHERE))
sources = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="\u2028\u2029\x85"), max_size=12
)
texts = sources.map(lambda value: ast.Text(value, NOWHERE))
digits = st.sampled_from(["0", "8", "0.5", "5e-2", "1_000", "2.1G", "25M"])
values_of = {"0": 0, "8": 8, "0.5": 0.5, "5e-2": 5e-2, "1_000": 1000, "2.1G": 2_100_000_000, "25M": 25_000_000}
numbers = digits.map(lambda text: ast.Number(values_of[text], text, NOWHERE))
negatives = digits.filter(lambda text: text != "0").map(lambda text: ast.Number(-values_of[text], "-" + text, NOWHERE))
sizes = st.sampled_from(["1", "3", "224"]).map(lambda text: ast.Number(int(text), text, NOWHERE))
comparisons = st.sampled_from(["<=", ">=", "<", ">", "==", "!="])
plain = st.one_of(numbers, negatives, texts, words.map(lambda text: ast.Word(text, NOWHERE)))
bounds = st.builds(lambda c, n: ast.Bound(c, n, NOWHERE), comparisons, numbers)
several = st.lists(st.one_of(plain, bounds), min_size=1, max_size=3).map(tuple)


def unique(items):
    """At most one item of each name, nameless ones first."""
    seen = {item.name.text if item.name else index: item for index, item in enumerate(items)}
    return tuple(sorted(seen.values(), key=lambda item: item.name is not None))


option_names = words.filter(lambda text: text not in ("where", "and")).map(lambda text: ast.Name(text, NOWHERE))
options = st.lists(st.builds(lambda n, v: ast.Option(n, v, NOWHERE), option_names, several), max_size=4).map(unique)
conditions = st.builds(lambda n, c, v: ast.Condition(n, c, v, NOWHERE), names, comparisons, several)
wheres = st.lists(conditions, min_size=1, max_size=2).map(lambda items: ast.Where(tuple(items), NOWHERE))
symbols = st.builds(lambda n, e: ast.SizeSymbol(n, e, NOWHERE), names, st.none() | sizes)
types = st.builds(lambda d, s: ast.InputType(d, tuple(s), NOWHERE), names, st.lists(sizes | symbols, max_size=4))
arguments = st.lists(st.builds(lambda n, v: ast.Argument(n, v, NOWHERE), st.none() | names, plain), max_size=3).map(
    unique
)
inputs = st.lists(
    st.builds(lambda n, v: ast.Input(n, v, NOWHERE), st.none() | names, types)
    | st.builds(lambda n, v: ast.Input(n, v, NOWHERE), names, plain),
    max_size=3,
).map(unique)
measures = st.builds(lambda n, c: ast.Measure(n, c, NOWHERE), names, names)
expressions = st.recursive(
    numbers.map(lambda n: ast.Quantity(n, NOWHERE)) | measures,
    lambda inner: (
        st.builds(lambda o, a, b: ast.Binary(o, a, b, NOWHERE), st.sampled_from("+-*/"), inner, inner)
        | inner.map(lambda item: ast.Negation(item, NOWHERE))
    ),
    max_leaves=8,
)
statement_words = {"model", "let", "check", "export", "build", "save", "show", "suture"}
pass_names = names.filter(lambda name: name.text not in statement_words)
torch_sources = st.builds(
    lambda c, a, w, i: ast.TorchSource(c, a, w, i, NOWHERE), texts, arguments, st.none() | texts, inputs
)
graph_sources = texts.map(lambda path: ast.GraphSource(path, NOWHERE))
statements = st.one_of(
    st.builds(lambda n, s: ast.Model(n, s, NOWHERE), names, torch_sources | graph_sources),
    st.builds(lambda a, b: ast.Let(a, b, NOWHERE), names, names),
    st.builds(lambda p, n, w, o: ast.Apply(p, n, w, o, NOWHERE), pass_names, names, st.none() | wheres, options),
    st.builds(
        lambda a, b, n, m, p: ast.Close(a, b, n, m, p, NOWHERE),
        names,
        names,
        numbers,
        st.none() | names.filter(lambda n: n.text != "on"),
        st.none() | texts,
    ),
    st.builds(lambda a, c, b: ast.Cost(a, c, b, NOWHERE), expressions, comparisons, expressions),
    st.builds(lambda n, p, o: ast.Export(n, p, o, NOWHERE), names, texts, options),
    st.builds(lambda n, p: ast.Save(n, p, NOWHERE), names, texts),
    st.builds(lambda n, v: ast.Show(n, v, NOWHERE), names, st.none() | names),
)
comments = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="\u2028\u2029\x85"), max_size=12
).map(lambda t: "#" + t)


@settings(deadline=None, max_examples=300)
@given(statements)
def test_a_formatted_statement_parses_to_the_same_tree(statement: ast.Statement) -> None:
    written = format_statement(statement)
    assert parse(f"suture 1\n{written}\n").statements == (statement,)
    assert "\n" not in written or len(written.replace("\n   ", "")) > WIDEST_LINE


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(statements, comments | st.none(), comments | st.none(), st.integers(0, 3)), max_size=5), comments
)
def test_formatting_keeps_statements_and_comments_and_is_idempotent(rows, last: str) -> None:
    lines = ["suture 1"]
    for statement, above, beside, blanks in rows:
        lines += (
            [""] * blanks
            + ([above] if above else [])
            + [format_statement(statement) + (f" {beside}" if beside else "")]
        )
    source = "\n".join([*lines, last])
    once = format_source(source)
    assert format_source(once) == once
    assert parse(once) == parse(source)

    def words_of(text: str) -> list[str]:
        return [comment.text.lstrip("# ").rstrip() for comment in parse(text).comments]

    assert words_of(once) == words_of(source)
