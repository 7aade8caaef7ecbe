"""What makes numbers of the lines of a till. An edit here has the calls run again that reach what was edited."""

CURRENCY = "€"


def amount(text: str) -> int:
    """Return the cents of an amount such as `€ 1,234.50`. Raises ValueError for what is none."""
    units, _, cents = text.replace(CURRENCY, "").replace(",", "").strip().partition(".")
    return int(units) * 100 + int((cents + "00")[:2])


def product(text: str) -> str:
    """Return the name under which a product is counted."""
    return " ".join(text.split()).lower()
