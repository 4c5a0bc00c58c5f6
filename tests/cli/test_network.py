"""Containers on bridges: what they see, who reaches them, and what is left."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from cli.stage import HOST, OUTSIDE, Stage, fetch, left, run, wait_until
from cli.store import Store


pytestmark = pytest.mark.root

SERVER = "exec busybox nc -ll -p {port} -e echo served"
SLEEP = ("small:v1", "sleep", "600")


def serve(store: Store, name: str, port: int, *flags: str) -> None:
    """Start a container that says `served` to everybody who comes."""
    script = SERVER.format(port=port)
    store.says("run", "-d", "--name", name, *flags, "small:v1", "sh", "-c", script)


def address(store: Store, name: str, network: str = "bridge") -> str:
    form = f"{{{{.NetworkSettings.Networks.{network}.IPAddress}}}}"
    return store.says("inspect", "-f", form, name).strip()


def test_a_container_has_an_address_a_gateway_and_a_way_out(
    shop: Store, host: Stage
) -> None:
    script = f"busybox ip addr; busybox ip route; cat /etc/hosts; busybox ping -c1 -w3 {OUTSIDE}"
    text = shop.says("run", "--rm", "--name", "me", "small:v1", "sh", "-c", script)
    assert "inet 172.17.0.2/16 brd 172.17.255.255" in text
    assert "default via 172.17.0.1 dev eth0" in text
    assert "link/ether 02:42:ac:11:00:02" in text
    assert "inet6" not in text
    assert text.count("172.17.0.2\t") == 1
    assert "1 packets received" in text


def test_what_leaves_carries_the_host_s_address(shop: Store, host: Stage) -> None:
    script = f"busybox nc {OUTSIDE} 7000 < /dev/null"
    with host.serving(ECHO_PEER):
        said = shop.says("run", "--rm", "small:v1", "sh", "-c", script)
    assert said == HOST


ECHO_PEER = """
import socket
s = socket.create_server(("", 7000)); print("ready", flush=True)
one, peer = s.accept(); one.sendall(peer[0].encode()); one.close()
"""


def test_twenty_at_once_have_distinct_addresses_and_leave_nothing(shop: Store) -> None:
    words = shop.argv("run", "-d", *SLEEP)
    running = [subprocess.Popen(words, stdout=subprocess.PIPE) for _ in range(20)]
    ids = [one.communicate(timeout=100)[0].decode().strip() for one in running]
    form = "{{range .Containers}}{{.IPv4Address}} {{end}}"
    given = shop.says("network", "inspect", "-f", form, "bridge").split()
    assert len(given) == len(set(given)) == 20
    shown = "busybox ip addr show eth0 | busybox awk '/inet /{print $2}'"
    seen = [shop.says("exec", id, "sh", "-c", shown).strip() for id in ids]
    assert sorted(seen) == sorted(given)
    shop.says("rm", "-f", *ids)
    wait_until(lambda: left() == ([], []))


def test_the_lowest_address_that_is_free_is_given(shop: Store) -> None:
    for name in ("one", "two", "three"):
        shop.says("run", "-d", "--name", name, *SLEEP)
    assert [address(shop, n) for n in ("one", "two", "three")] == [
        "172.17.0.2", "172.17.0.3", "172.17.0.4",
    ]  # fmt: skip
    shop.says("rm", "-f", "two")
    shop.says("run", "-d", "--name", "four", *SLEEP)
    assert address(shop, "four") == "172.17.0.3"


def test_a_killed_supervisor_leaves_what_the_next_command_removes(shop: Store) -> None:
    serve(shop, "gone", 80, "-p", "8080:80")
    shop.says("run", "-d", "--rm", "--name", "gone2", *SLEEP)
    assert fetch("127.0.0.1", 8080) == "served\n"
    for name in ("gone", "gone2"):
        pid = int(shop.says("inspect", "-f", "{{.State.Pid}}", name))
        with open(f"/proc/{pid}/stat") as file:
            supervisor = int(file.read().rpartition(")")[2].split()[1])
        os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: [n for n in left()[0] if n.startswith("veth")] == [])
    assert len(left()[1]) == 1, "the ports' rules went with their owner"
    assert "Exited (137)" in shop.says("ps", "-a")
    wait_until(lambda: left() == ([], []))
    serve(shop, "again", 80, "-p", "8080:80")
    assert address(shop, "again") == "172.17.0.2"


def test_the_first_subnet_that_overlaps_no_route_is_taken(shop: Store) -> None:
    run("ip", "route", "add", "172.17.128.0/24", "via", OUTSIDE)
    shop.says("run", "-d", "--name", "one", *SLEEP)
    assert address(shop, "one") == "172.18.0.2"
    shop.says("rm", "-f", "one")
    wait_until(lambda: left() == ([], []))
    run("ip", "route", "add", "172.18.0.0/16", "via", OUTSIDE)
    shop.says("run", "-d", "--name", "one", *SLEEP)
    assert address(shop, "one") == "172.19.0.2"


def test_two_stores_at_once_choose_different_subnets(
    shop: Store, small_tree: Path, tmp_path: Path
) -> None:
    stores = [Store(tmp_path / name) for name in ("aa", "bb", "cc")]
    for store in stores:
        store.says("import", str(small_tree), "small:v1")
    running = [
        subprocess.Popen(s.argv("run", "-d", *SLEEP), stdout=subprocess.DEVNULL)
        for s in stores
    ]
    assert [one.wait(30) for one in running] == [0, 0, 0]
    form = "{{(index .IPAM.Config 0).Subnet}}"
    try:
        chosen = [s.says("network", "inspect", "-f", form, "bridge") for s in stores]
        assert len(set(chosen)) == 3
    finally:
        for store in stores:
            store.says("rm", "-f", *store.says("ps", "-aq").split())
        wait_until(lambda: left() == ([], []))


def test_a_tcp_port_is_published_everywhere(shop: Store, host: Stage) -> None:
    serve(shop, "web", 80, "-p", "8080:80")
    shop.says("run", "-d", "--name", "other", *SLEEP)
    for place in ("127.0.0.1", HOST, "172.17.0.1"):
        assert fetch(place, 8080) == "served\n", place
    assert fetch("::1", 8080, socket.AF_INET6) == "served\n"
    assert host.outside("busybox", "nc", HOST, "8080").stdout == "served\n"
    for client in ("other", "web"):
        words = ("exec", client, "busybox", "nc", HOST, "8080")
        assert shop.says(*words) == "served\n", client
    assert host.outside("busybox", "nc", "-w1", "172.17.0.2", "80").returncode != 0


@contextmanager
def program_in(store: Store, name: str, code: str) -> Iterator[IO[str]]:
    """Run Python in a container's network; it has printed a line. Yield its output."""
    pid = store.says("inspect", "-f", "{{.State.Pid}}", name).strip()
    words = ["nsenter", "-t", pid, "-n", sys.executable, "-c", code]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        assert program.stdout.readline() == "ready\n"
        try:
            yield program.stdout
        finally:
            program.kill()


STREAMS = """
import socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        print(self.client_address[0], flush=True)
        while data := self.request.recv(65536):
            self.request.sendall(data)
class Server(socketserver.ThreadingTCPServer):
    request_queue_size, daemon_threads = 100, True
print("ready", flush=True) if (server := Server(("", 80), Echo)) else None
server.serve_forever()
"""
DATAGRAMS = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", 53)); print("ready", flush=True)
while True:
    data, peer = s.recvfrom(65535); s.sendto(data + peer[0].encode(), peer)
"""
ASK = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3)
s.sendto(b"hi ", (sys.argv[1], 5353)); print(s.recv(100).decode())
"""


def test_who_comes_from_outside_is_seen_as_who_he_is(shop: Store, host: Stage) -> None:
    shop.says("run", "-d", "--name", "web", "-p", "8080:80", *SLEEP)
    with program_in(shop, "web", STREAMS) as said:
        host.outside("busybox", "nc", "-w1", HOST, "8080")
        assert said.readline() == f"{OUTSIDE}\n"
        connects(8080)
        assert said.readline() == "172.17.0.1\n"


def test_a_udp_port_is_published_everywhere(shop: Store, host: Stage) -> None:
    shop.says("run", "-d", "--name", "dns", "-p", "5353:53/udp", *SLEEP)
    assert shop.says("port", "dns") == "53/udp -> 0.0.0.0:5353\n53/udp -> :::5353\n"
    with program_in(shop, "dns", DATAGRAMS):
        assert host.outside(sys.executable, "-c", ASK, HOST).stdout == f"hi {OUTSIDE}\n"
        for place in ("127.0.0.1", HOST):
            said = run(sys.executable, "-c", ASK, place)
            assert said.startswith("hi "), place


def test_many_visitors_and_much_data_pass(shop: Store) -> None:
    shop.says("run", "-d", "--name", "echo", "-p", "8080:80", *SLEEP)
    data = os.urandom(1 << 20)
    got: list[bytes] = []

    def one() -> None:
        with socket.create_connection(("127.0.0.1", 8080)) as visitor:
            threading.Thread(target=say, args=(visitor, data)).start()
            found = b""
            while more := visitor.recv(1 << 16):
                found += more
            got.append(found)

    visitors = [threading.Thread(target=one) for _ in range(20)]
    with program_in(shop, "echo", STREAMS):
        for visitor in visitors:
            visitor.start()
        for visitor in visitors:
            visitor.join(30)
    assert got == [data] * 20


def say(visitor: socket.socket, data: bytes) -> None:
    visitor.sendall(data)
    visitor.shutdown(socket.SHUT_WR)


def connects(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port)) as one:
        one.shutdown(socket.SHUT_WR)
        return one.recv(1) == b""


def test_ranges_addresses_and_any_port(shop: Store) -> None:
    flags = ("-p", "127.0.0.1:7000-7001:80-81", "-p", "9000-9001:90", "-p", "91", "-P")
    shop.says("run", "-d", "--name", "one", "--expose", "92/udp", *flags, *SLEEP)
    shop.says("run", "-d", "--name", "two", "-p", "9000-9001:90", *SLEEP)
    lines = shop.says("port", "one").splitlines()
    assert "80/tcp -> 127.0.0.1:7000" in lines
    assert "81/tcp -> 127.0.0.1:7001" in lines
    assert "90/tcp -> 0.0.0.0:9000" in lines
    assert len([line for line in lines if line.startswith(("91/tcp", "92/udp"))]) == 4
    assert "90/tcp -> 0.0.0.0:9001" in shop.says("port", "two")
    done = shop("run", "-d", "--name", "three", "-p", "9000-9001:90", *SLEEP)
    assert done.returncode == 125
    assert "port is already allocated" in done.stderr


def test_ps_finds_a_published_port_by_its_number_on_the_host(shop: Store) -> None:
    ports = ("-p", "8300-8301:80-81", "-p", "8302:53/udp")
    shop.says("run", "-d", "--name", "web", *ports, *SLEEP)
    for asked, found in (
        ("8300", True), ("8290-8310/tcp", True), ("8302/udp", True),
        ("80", False), ("8302", False), ("53/udp", False),
    ):  # fmt: skip
        words = ("ps", "--filter", f"publish={asked}", "--format", "{{.Names}}")
        assert shop.says(*words).split() == ["web"] * found, asked


def test_a_port_in_use_is_refused_before_anything_is_made(shop: Store) -> None:
    with socket.create_server(("127.0.0.1", 8080)):
        for flag in ("8080:80", "127.0.0.1:8080:80"):
            done = shop("run", "--name", "never", "-p", flag, *SLEEP)
            assert done.returncode == 125
            assert "8080 failed: port is already allocated" in done.stderr
    assert shop.says("ps", "-aq") == ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("", 5353))
        done = shop("run", "--rm", "-p", "5353:53/udp", *SLEEP)
        assert (done.returncode, done.stdout) == (125, "")


def test_a_container_without_a_network_publishes_nothing(shop: Store) -> None:
    shop.says(
        "run", "-d", "--name", "one", "--network", "none", "-p", "8080:80", *SLEEP
    )
    assert left() == ([], [])
    assert fetch("127.0.0.1", 8080) == ""
    assert shop.says("port", "one") == ""


BAD = [
    ("-p x", "invalid containerPort: x"), ("-p 99999:80", "invalid hostPort: 99999"),
    ("-p 80:99999", "invalid containerPort: 99999"),
    ("-p 1.2.3:80:80", "invalid IP address: 1.2.3"), ("-p 80/foo", "invalid proto: foo"),
    ("-p 80-82:80-81", "invalid ranges specified"), ("-p 80:", "no port specified"),
    ("-p 9-8:9-8", "invalid range"), ("--ip x", "invalid IPv4 address: x"),
    ("--ip6 1.2.3.4", "invalid IPv6 address: 1.2.3.4"), ("--mac-address zz", "zz is not a valid mac"),
    ("--dns x", "IP address is not correctly formatted: x"),
    ("--add-host x", 'bad format for add-host: "x"'),
    ("--add-host x:y", 'invalid IP address in add-host: "y"'),
    ("--dns-search ..", ".. is not a valid domain"),
    ("--expose x", "invalid range format for --expose: x"), ("--expose 70000", "70000"),
    ("--network moon", "network moon not found"),
    ("--network container:me -p 80:80", "port publishing and the container type network mode"),
    ("--network container:me --expose 80", "port exposing"),
    ("--network container:me --dns 1.1.1.1", "dns and the network mode"),
    ("--network container:me --add-host a:1.1.1.1", "custom host-to-IP mapping"),
    ("--network host --mac-address 02:42:00:00:00:01", "mac-address and the network mode"),
    ("--ip 172.17.0.9", "supported on user defined networks only"),
    ("--network none --ip 172.17.0.9", "supported on user defined networks only"),
    ("--network-alias al", "user defined networks"),
]  # fmt: skip


def test_nonsense_is_refused_before_anything_is_made(shop: Store) -> None:
    shop.says("run", "-d", "--name", "me", "--network", "none", *SLEEP)
    for flags, said in BAD:
        done = shop("run", "--name", "never", *flags.split(), *SLEEP)
        assert (done.returncode, done.stdout) == (125, ""), flags
        assert said in done.stderr.splitlines()[0], flags
    assert len(shop.says("ps", "-aq").split()) == 1
    assert left() == ([], [])


def test_the_files_tell_names_as_they_were_asked_for(shop: Store) -> None:
    flags = "-h h1 --domainname dom.x --add-host a:1.2.3.4 --add-host gw:host-gateway"
    flags += " --dns 9.9.9.9 --dns-search s.x --dns-option ndots:3"
    script = "cat /etc/hosts /etc/hostname /etc/resolv.conf /proc/sys/kernel/domainname"
    text = shop.says("run", "--rm", *flags.split(), "small:v1", "sh", "-c", script)
    assert text.splitlines()[6:] == [
        "1.2.3.4\ta", "172.17.0.1\tgw", "172.17.0.2\th1.dom.x h1", "h1", "search s.x",
        "nameserver 9.9.9.9", "options ndots:3", "dom.x",
    ]  # fmt: skip


def test_a_container_that_starts_again_gets_its_network_again(shop: Store) -> None:
    from minidocker.background import run_detached
    from minidocker.containers import ContainerStore
    from minidocker.engine import Engine

    serve(shop, "web", 80, "-p", "8080:80")
    shop.says("kill", "web")
    shop.says("wait", "web")  # its address is free when it has ended
    shop.says("run", "-d", "--name", "thief", *SLEEP)
    engine = Engine(str(shop.root), "overlay2")
    store: ContainerStore = engine.containers
    child = os.fork()
    if child == 0:
        run_detached(store, store.resolve("web"))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert address(shop, "web") == "172.17.0.3"
    assert fetch("127.0.0.1", 8080) == "served\n"


def test_inspect_is_valid_json_with_both_places_of_an_address(shop: Store) -> None:
    shop.says(
        "run", "-d", "--name", "one", "--mac-address", "02:00:00:00:00:07", *SLEEP
    )
    settings = json.loads(shop.says("inspect", "one"))[0]["NetworkSettings"]
    inner = settings["Networks"]["bridge"]
    for key in ("IPAddress", "MacAddress", "Gateway", "EndpointID", "IPPrefixLen"):
        assert settings[key] == inner[key] != ""
    assert inner["MacAddress"] == "02:00:00:00:00:07"
    shop.says("stop", "-t", "0", "one")
    settings = json.loads(shop.says("inspect", "one"))[0]["NetworkSettings"]
    assert settings["IPAddress"] == "" == settings["Networks"]["bridge"]["IPAddress"]
