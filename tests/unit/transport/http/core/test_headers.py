"""What headers of requests and responses say."""

from __future__ import annotations

from edged.transport.http.core import headers


def test_header_names_a_bounded_number() -> None:
    """Proxies bound all headers together."""
    assert headers.names(["a", "b.c"]) == "a, b.c"
    assert headers.names([str(i) for i in range(40)]).endswith("30, 31, +8")


def test_name_that_a_client_made_up_is_safe_in_a_header() -> None:
    """No line break, no end of the list, and not without end."""
    assert headers.safe("a\r\nb, c") == "a__b__c"
    assert headers.safe("") == "_"
    assert len(headers.safe("x" * 1000)) == headers.MAX_NAME
