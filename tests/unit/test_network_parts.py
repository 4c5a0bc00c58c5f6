"""Networks without a kernel: subnets, addresses, names, messages, ports."""

import doctest
import struct
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidocker import (
    etc_files,
    netfilter,
    network_flags,
    network_views,
    networks,
    publishing,
    resolver,
    rtnetlink,
)
from minidocker.errors import ConflictError, UsageError
from minidocker.network_flags import bindings
from minidocker.networks import (
    BridgeNetwork,
    Endpoint,
    Subnet,
    Wish,
    candidates,
    endpoint_from,
    ends_of,
    free_address,
    free_subnet,
    gateway_of,
    network_from,
    overlap,
    plain,
    read_cidr,
    take_place,
)
from minidocker.program import Network, PortBinding, network_mode
from minidocker.resolver import answered, encoded, known_answer, read_question
from minidocker.rtnetlink import address_of, attributes_in, number_of


MODULES = (
    etc_files, netfilter, network_flags, network_views, networks, publishing, resolver,
    rtnetlink,
)  # fmt: skip
V4 = st.integers(0, 2**32 - 1).map(lambda n: address_of(n, 2))


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_doctests_hold(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.failed == 0
    assert result.attempted > 0 or module is netfilter


@given(V4, st.integers(8, 30), V4, st.integers(8, 30))
def test_two_subnets_overlap_when_they_share_an_address(
    a: str, m: int, b: str, n: int
) -> None:
    (low, high), (first, last) = ends_of(a, m), ends_of(b, n)
    assert overlap((a, m), (b, n)) == (low <= last and first <= high)


@given(st.lists(st.sampled_from(list(candidates())), max_size=30))
def test_a_free_subnet_overlaps_nothing(taken: list[tuple[str, int]]) -> None:
    try:
        found = free_subnet(taken)
    except ConflictError:
        assert len(set(taken)) == len(list(candidates()))
    else:
        assert not any(overlap((found.address, found.bits), one) for one in taken)


@given(st.integers(24, 30), st.integers(0, 300))
def test_a_subnet_gives_every_address_once(bits: int, wanted: int) -> None:
    subnet = gateway_of(Subnet("10.1.2.0", bits))
    room = 2 ** (32 - bits) - 3  # the first, the last, the gateway
    taken: list[str] = []
    for _ in range(min(wanted, room)):
        taken.append(free_address(subnet, taken))
    assert len(set(taken)) == len(taken)
    assert subnet.gateway not in taken
    if wanted > room:
        with pytest.raises(ConflictError, match="no available addresses"):
            free_address(subnet, taken)


def test_reserved_addresses_and_ranges_are_kept() -> None:
    subnet = Subnet("10.1.0.0", 16, "10.1.5.0", "10.1.5.0", 30, (("a", "10.1.5.1"),))
    assert free_address(subnet, ()) == "10.1.5.2"
    assert free_address(subnet, ["10.1.5.2"]) == "10.1.5.3"
    with pytest.raises(ConflictError, match="no available addresses"):
        free_address(subnet, ["10.1.5.2", "10.1.5.3"])
    assert free_address(subnet, (), "10.1.9.9") == "10.1.9.9"
    with pytest.raises(ConflictError, match="already in use"):
        free_address(subnet, ["10.1.9.9"], "10.1.9.9")


@pytest.mark.parametrize(
    "text", ["", "10.1.0.0", "10.1.0.0/33", "x/8", "10.1/8", "::1/129"]
)
def test_what_is_no_subnet_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="invalid CIDR"):
        read_cidr(text)


def test_records_are_read_as_they_were_written() -> None:
    subnet = Subnet(
        "10.1.0.0", 16, "10.1.0.1", "10.1.5.0", 24, (("a", "10.1.0.9"),), True
    )
    network = BridgeNetwork("ab", "shop", "now", (subnet,), labels={"a": "b"})
    assert network_from(plain(network)) == network
    wish = Wish("10.1.0.7", aliases=("www",))
    one = Endpoint(
        "shop", "ab", "cd", "web", "", "", "", 0, "", names=("web",), wish=wish
    )
    placed = take_place(network, [], one)
    assert (placed.ip, placed.mac) == ("10.1.0.7", "02:42:0a:01:00:07")
    assert endpoint_from(plain(placed)) == placed


def test_a_subnet_of_ipv6_is_used_only_where_it_was_asked_for() -> None:
    pair = (gateway_of(Subnet("10.1.0.0", 16)), gateway_of(Subnet("fd00::", 64)))
    blank = Endpoint("", "", "", "", "", "", "", 0, "")
    network = BridgeNetwork("ab", "shop", "now", pair)
    assert take_place(network, [], blank).ip6 == ""
    placed = take_place(network.replace(ipv6=True), [], blank)
    assert (placed.ip6, placed.gateway6, placed.bits6) == ("fd00::2", "fd00::1", 64)


@given(st.binary(max_size=80))
def test_no_message_upsets_the_resolver(data: bytes) -> None:
    found = read_question(data)
    if found:
        assert found.end <= len(data)
        assert answered(data, found, 1, [b"\1\2\3\4"])[:2] == data[:2]
    list(attributes_in(data))


@given(
    st.from_regex(r"[a-z]{1,20}(\.[a-z]{1,10}){0,3}", fullmatch=True),
    st.integers(1, 255),
)
def test_a_question_is_read_as_it_was_asked(name: str, kind: int) -> None:
    ask = (
        b"\0\7\1\0\0\1" + bytes(6) + encoded(name.upper()) + struct.pack(">HH", kind, 1)
    )
    found = read_question(ask)
    assert found
    assert (found.name, found.kind, found.end) == (name, kind, len(ask))


def test_a_name_without_an_address_of_that_kind_is_known_all_the_same() -> None:
    one = Endpoint("shop", "", "", "web", "", "", "10.1.0.2", 16, "", names=("web",))
    ask = b"\0\7\1\0\0\1" + bytes(6) + encoded("web") + struct.pack(">HH", 28, 1)
    asked = read_question(ask)
    assert asked
    assert known_answer(asked, [one]) == (28, [])


def test_a_pair_of_ranges_is_paired() -> None:
    assert bindings("8000-8001:80-81") == [
        PortBinding("80/tcp", "", "8000"), PortBinding("81/tcp", "", "8001"),
    ]  # fmt: skip
    assert bindings("8000-8010:80") == [PortBinding("80/tcp", "", "8000-8010")]


def test_a_mode_names_a_kind_or_a_network() -> None:
    assert network_mode("none") == (Network.NONE, "")
    assert network_mode("nonesuch") == (Network.BRIDGE, "nonesuch")
    assert network_mode("container:a") == (Network.CONTAINER, "a")


@given(V4)
def test_an_address_is_a_number_and_back(address: str) -> None:
    assert address_of(number_of(address), 2) == address
