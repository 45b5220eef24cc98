"""How the tool reads numbers, refs and seconds."""

from __future__ import annotations

import argparse

import pytest

from xengrant.cli import arguments


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("8", [8]),
        ("8-11", [8, 9, 10, 11]),
        ("8-9,40,7", [8, 9, 40, 7]),
        ("4294967295", [4294967295]),
        ("2147483648-2147483649", [2147483648, 2147483649]),
    ],
)
def test_refs_are_unsigned_32_bit_numbers_and_ranges_in_order(text: str, wanted: list[int]) -> None:
    assert arguments.refs(argparse.ArgumentParser(), [text]) == wanted


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "8-", "9-8", "4294967296", "8 9", "8,,9", "0x8", "٨", "8\n", "0-4294967295", "1e3"]
)
def test_what_is_no_ref_is_refused(text: str) -> None:
    with pytest.raises(SystemExit):
        arguments.refs(argparse.ArgumentParser(), [text])


@pytest.mark.parametrize("text", ["x", "9-8", "8-99999999999", "4294967296", "8,9-8"])
def test_each_mistake_in_refs_is_said_alike(capsys: pytest.CaptureFixture[str], text: str) -> None:
    with pytest.raises(SystemExit):
        arguments.refs(argparse.ArgumentParser(), ["8", text])
    said = f"{text!r} is no ref and no range of refs (unsigned 32-bit): write 8, 8-23 or 8-23,40\n"
    assert capsys.readouterr().err.endswith(f"error: {said}")


def test_more_refs_than_can_be_mapped_at_once_are_refused_before_they_are_counted_out() -> None:
    parser = argparse.ArgumentParser()
    assert len(arguments.refs(parser, ["0-32767", "40000-72767"])) == 65536
    with pytest.raises(SystemExit):
        arguments.refs(parser, ["0-65535"] * 100_000)


def test_refs_print_as_they_are_read() -> None:
    assert arguments.format_refs((8, 9, 10, 40, 7)) == "8-10,40,7"
    many = tuple(range(0, 6000, 2))
    assert arguments.refs(argparse.ArgumentParser(), [arguments.format_refs(many)]) == list(many)


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "soon", "1e10", ""])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        arguments.seconds(text)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "9" * 30])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        arguments.count(text)
