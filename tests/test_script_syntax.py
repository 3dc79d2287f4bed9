"""The script language's grammar: what parses, to which tree, and the one line that a mistake gets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suture.frontends.script import ast
from suture.frontends.script.ast import (
    Apply,
    Binary,
    Bound,
    Build,
    Close,
    Condition,
    Cost,
    Export,
    Input,
    InputType,
    Let,
    Measure,
    Model,
    Name,
    Number,
    Option,
    Quantity,
    Show,
    SizeSymbol,
    Span,
    Text,
    TorchSource,
    Where,
    Word,
)
from suture.frontends.script.parser import parse, read_script
from suture.ir.errors import Code, SutureError

NO_SPAN = Span(0, 0, 0, 0)


def name(text: str) -> Name:
    return Name(text, NO_SPAN)


def number(value: float, text: str = "") -> Number:
    return Number(value, text or str(value), NO_SPAN)


def text(value: str) -> Text:
    return Text(value, NO_SPAN)


def statement(line: str) -> ast.Statement:
    (only,) = parse(f"suture 1\n{line}\n").statements
    return only


def test_a_model_with_all_clauses() -> None:
    line = 'model net = torch "zoo:make" args 10, width=-0.5 weights "w.pt" input x: f32[batch=4, 3], y: i64[], cache=false'
    kind = InputType(name("f32"), (SizeSymbol(name("batch"), number(4), NO_SPAN), number(3)), NO_SPAN)
    inputs = (
        Input(name("x"), kind, NO_SPAN),
        Input(name("y"), InputType(name("i64"), (), NO_SPAN), NO_SPAN),
        Input(name("cache"), Word("false", NO_SPAN), NO_SPAN),
    )
    arguments = (ast.Argument(None, number(10), NO_SPAN), ast.Argument(name("width"), number(-0.5), NO_SPAN))
    source = TorchSource(text("zoo:make"), arguments, text("w.pt"), inputs, NO_SPAN)
    assert statement(line) == Model(name("net"), source, NO_SPAN)


def test_the_clauses_of_a_model_come_in_any_order() -> None:
    one = statement('model net = torch "a:b" weights "w" input f32[2] args 3')
    assert one == statement('model net = torch "a:b" args 3 input f32[2] weights "w"')


def test_a_pass_with_sites_conditions_and_options() -> None:
    found = statement('prune net at "a*", "b" where op == "linear", conv and axis != x expect >=3 keep 0.5 by l2')
    where = Where(
        (
            Condition(name("op"), "==", (text("linear"), Word("conv", NO_SPAN)), NO_SPAN),
            Condition(name("axis"), "!=", (Word("x", NO_SPAN),), NO_SPAN),
        ),
        NO_SPAN,
    )
    options = (
        Option(name("at"), (text("a*"), text("b")), NO_SPAN),
        Option(name("expect"), (Bound(">=", number(3), NO_SPAN),), NO_SPAN),
        Option(name("keep"), (number(0.5),), NO_SPAN),
        Option(name("by"), (Word("l2", NO_SPAN),), NO_SPAN),
    )
    assert found == Apply(name("prune"), name("net"), where, options, NO_SPAN)


def test_checks_of_closeness_and_of_cost() -> None:
    close = Close(name("a"), name("original"), number(0.05, "5e-2"), name("relative"), text("p.npz"), NO_SPAN)
    assert statement('check a ~ original within 5e-2 relative on "p.npz"') == close
    macs, params = Measure(name("a"), name("macs"), NO_SPAN), Measure(name("b"), name("params"), NO_SPAN)
    product = Binary("*", Quantity(number(0.6), NO_SPAN), params, NO_SPAN)
    right = Binary("-", product, Quantity(number(2_100_000_000, "2.1G"), NO_SPAN), NO_SPAN)
    assert statement("check a.macs <= 0.6 * b.params - 2.1G") == Cost(macs, "<=", right, NO_SPAN)


def test_the_other_statements() -> None:
    assert statement("let a = b") == Let(name("a"), name("b"), NO_SPAN)
    assert statement("show net axes") == Show(name("net"), name("axes"), NO_SPAN)
    assert statement("show net") == Show(name("net"), None, NO_SPAN)
    options = (Option(name("opset"), (number(21),), NO_SPAN),)
    target = Option(name("target"), (Word("cpp", NO_SPAN),), NO_SPAN)
    assert statement('build net to "out/" target cpp') == Build(name("net"), text("out/"), (target,), NO_SPAN)
    assert statement('export net to "n.onnx" opset 21') == Export(name("net"), text("n.onnx"), options, NO_SPAN)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("8", 8),
        ("1_000", 1000),
        ("0.5", 0.5),
        ("5e-2", 0.05),
        ("1E3", 1000.0),
        ("25M", 25_000_000),
        ("2.5K", 2500),
        ("-3", -3),
    ],
)
def test_numbers(written: str, value: float) -> None:
    found = statement(f"prune net keep {written}")
    assert isinstance(found, Apply)
    (kept,) = found.options[0].values
    assert isinstance(kept, Number)
    assert (kept.value, type(kept.value)) == (value, type(value))


@pytest.mark.parametrize(
    ("written", "value"), [(r'"a\"b"', 'a"b'), (r'"a\\b"', r"a\b"), ('"# no comment"', "# no comment"), ('""', "")]
)
def test_texts(written: str, value: str) -> None:
    assert statement(f"prune net at {written}") == statement_with(value)


def statement_with(value: str) -> Apply:
    return Apply(name("prune"), name("net"), None, (Option(name("at"), (text(value),), NO_SPAN),), NO_SPAN)


def test_words_of_the_language_may_name_models_and_options() -> None:
    found = statement("prune model where op == let input 3 weights check")
    assert isinstance(found, Apply)
    assert found.target == name("model")
    assert [option.name.text for option in found.options] == ["input", "weights"]


def test_an_indented_line_continues_its_statement_across_comments() -> None:
    lines = 'suture 1\nprune net  # sites\n\n# not in the way\n    at "a"\n\t# nor this\n\tkeep 0.5\nfold net'
    assert parse(lines) == parse('suture 1\nprune net at "a" keep 0.5\nfold net\n')


def test_blank_lines_comments_carriage_returns_and_marks_do_not_count(tmp_path) -> None:
    path = tmp_path / "s.suture"
    path.write_bytes(b"\xef\xbb\xbf# head\r\n\r\nsuture 1 # one\r\n\r\n  # two\r\nfold net\r\n   \r\n# end")
    assert read_script(path) == parse("suture 1\nfold net")


def test_places_are_those_of_the_source() -> None:
    script = parse('suture 1\nprune net\n    at "a"  # why\n    keep 0.5\n')
    (only,) = script.statements
    assert only.span == Span(2, 1, 4, 13)
    assert isinstance(only, Apply)
    assert only.options[1].values[0].span == Span(4, 10, 4, 13)
    assert script.text(only.span) == 'prune net at "a" keep 0.5'


def test_comments_are_kept_with_their_places() -> None:
    script = parse('suture 1\n# alone\nprune net at "#"  # beside\n')
    assert [(item.text, item.line, item.column, item.alone) for item in script.comments] == [
        ("# alone", 2, 1, True),
        ("# beside", 3, 19, False),
    ]


BAD = [
    ("", "1:1", "the script is empty", "'suture 1'"),
    ("# nothing\n", "1:1", "the script is empty", "'suture 1'"),
    ("fold net\n", "1:1", "unexpected 'fold'", "'suture 1'"),
    ("suture 2\n", "1:8", "version 2", "'suture 1'"),
    ("suture 1.0\n", "1:8", "version 1.0", "'suture 1'"),
    ("suture 1\nmodel net = troch \"x\"\n", "2:13", "unexpected 'troch'", "'torch'"),
    ("suture 1\nmdoel net = torch \"x\"\n", "2:11", "unexpected '='", "the nearest is 'model'"),
    ("suture 1\nprune net keep\nfold net\n", "2:15", "the statement ends too early", "a number"),
    ("suture 1\nprune net keep\n", "2:15", "the script ends in the middle", "a number"),
    ("suture 1\nmodel net = torch \"a:b\" input f32[batch, 3", "2:43", "the script ends in the middle", "']'"),
    ("suture 1\nprune net keep 0.5x\n", "2:16", "'0.5x' is neither a number nor a name", "0.5"),
    ("suture 1\nprune net at \"abc\n", "2:14", "does not end on its line", 'close it with "'),
    ("suture 1\nprune net at \"C:\\dir\"\n", "2:14", "does not end on its line", "backslash"),
    ("suture 1\nprune net at 'abc'\n", "2:14", "unexpected character", "double quotes"),
    ("suture 1\nprune net at é\n", "2:14", "unexpected character 'é'", "a number"),
    ("suture 1\n  fold net\n", "2:3", "unexpected 'fold'", "column 1"),
    ("suture 1\ncheck net ~ original withn 1\n", "2:22", "unexpected 'withn'", "'within'"),
    ("suture 1\ncheck net.macs\n", "2:15", "in the middle", "a comparison"),
    ("suture 1\ncheck (net.macs < 3\n", "2:17", "unexpected '<'", "')'"),
    ("suture 1\nexport net too \"x\"\n", "2:12", "unexpected 'too'", "'to'"),
    ("suture 1\nexport net to \"x\" opset 20 opset 21\n", "2:28", "'opset' is given twice", "commas"),
    ("suture 1\nprune net keep 1 keep 2\n", "2:18", "'keep' is given twice", "commas"),
    ("suture 1\nprune net where a == 1 where b == 2\n", "2:24", "'where' is given twice", "'and'"),
    ("suture 1\nmodel n = torch \"a:b\" args 1 args 2\n", "2:30", "'args' is given twice", "one 'args'"),
    ("suture 1\nmodel n = torch \"a:b\" args x=1, x=2\n", "2:33", "'x' is given twice", "once"),
    ("suture 1\nmodel n = torch \"a:b\" args x=1, 2\n", "2:33", "positional", "first"),
    ("suture 1\nmodel n = torch \"a:b\" args >=3\n", "2:28", "a comparison is no argument", "a number"),
    ("suture 1\nmodel n = torch \"a:b\" input f32[batch, 0]\n", "2:40", "a size cannot be 0", "positive"),
    ("suture 1\nmodel n = torch \"a:b\" input f32[1.5]\n", "2:33", "a size cannot be 1.5", "positive"),
    ("suture 1\nprune net keep 1e999\n", "2:16", "too large", "below"),
    ("suture 1\nprune net keep " + "9" * 400 + "\n", "2:16", "400 digits", "at most"),
    ("suture 1\ncheck net.macs < " + "-" * 20000 + "1\n", "", "nested too deeply", "fewer"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "place", "what", "remedy"), BAD, ids=[f"{place} {what}"[:40] for _, place, what, _ in BAD]
)
def test_a_mistake_gets_one_line_with_place_and_remedy(source: str, place: str, what: str, remedy: str) -> None:
    with pytest.raises(SutureError) as caught:
        parse(source, "s.suture")
    error = caught.value
    assert error.code == Code.SCRIPT_SYNTAX
    assert "\n" not in str(error)
    assert str(error).startswith(f"[S301] s.suture:{place}: " if place else "[S301] s.suture: ")
    assert what in error.what
    assert remedy in error.remedy


def test_the_excerpt_has_a_caret_under_the_place() -> None:
    with pytest.raises(SutureError) as caught:
        parse('suture 1\nmodel net = troch "x"\n')
    assert caught.value.excerpt == '2 | model net = troch "x"\n                ^^^^^'


def test_the_excerpt_of_a_very_long_line_is_cut_around_the_place() -> None:
    with pytest.raises(SutureError) as caught:
        parse("suture 1\nprune net at " + '"x", ' * 500 + " ? " + ', "y"' * 500)
    line, carets = caught.value.excerpt.split("\n")
    assert len(line) < 200
    assert line[carets.index("^")] == "?"


def test_every_prefix_of_a_script_parses_or_gets_one_line() -> None:
    """A script cut short anywhere."""
    whole = 'suture 1\nmodel net = torch "a:b" input f32[batch, 3]\nprune net at "x" keep 0.5\ncheck net.macs <= 0.6 * original.macs\n'
    parsed = 0
    for length in range(len(whole)):
        try:
            parse(whole[:length])
            parsed += 1
        except SutureError as error:
            if error.code != Code.SCRIPT_SYNTAX or "\n" in str(error):
                raise
    assert 5 < parsed < len(whole) / 2


WORDS = [
    "model",
    "net",
    "=",
    "torch",
    "graph",
    '"a:b"',
    "args",
    "weights",
    "input",
    "f32",
    "[",
    "]",
    "batch",
    ",",
    ":",
    "let",
    "prune",
    "at",
    "where",
    "op",
    "==",
    "and",
    "keep",
    "0.5",
    "-1",
    ">=3",
    "check",
    "~",
    "within",
    "on",
    ".",
    "+",
    "*",
    "/",
    "(",
    ")",
    "export",
    "build",
    "to",
    "save",
    "show",
    "#",
    "\n",
    "\n\t",
    "\x00",
    "'",
    "é",
]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(WORDS), max_size=20))
def test_no_text_makes_the_parser_fail_otherwise(words: list[str]) -> None:
    try:
        parse("suture 1\n" + " ".join(words))
    except SutureError as error:
        if error.code != Code.SCRIPT_SYNTAX or "\n" in str(error) or not error.remedy:
            raise


def test_files_that_are_no_scripts(tmp_path) -> None:
    for content, code in [(b"\xff\xfe\x00", Code.SCRIPT_SYNTAX), (b" " * 5_000_000, Code.FILE)]:
        (tmp_path / "s.suture").write_bytes(content)
        with pytest.raises(SutureError) as caught:
            read_script(tmp_path / "s.suture")
        assert caught.value.code == code
    for path in (tmp_path / "none.suture", tmp_path):
        with pytest.raises(SutureError) as caught:
            read_script(path)
        assert caught.value.code == Code.FILE


def test_many_lines_parse_in_linear_time() -> None:
    script = parse("suture 1\n" + "fold net  # again\n\n" * 5000)
    assert len(script.statements) == 5000
