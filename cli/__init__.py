"""`c2s`, the command line."""


def main() -> None:
    raise SystemExit(2)
