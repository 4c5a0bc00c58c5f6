"""Networks that users make: names, isolation, joining and leaving; beside Docker's."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from peers import docker_daemon

from cli.conftest import clean
from cli.stage import HOST, OUTSIDE, Stage, left, wait_until
from cli.store import Store
from minidocker import network_verbs
from minidocker.engine import Engine
from minidocker.networks import BridgeNetwork
from minidocker.sandbox import network_store
from minidocker.wiring import sweep_network


pytestmark = pytest.mark.root

SLEEP = ("small:v1", "sleep", "600")


def lookup(store: Store, who: str, name: str) -> list[str]:
    """The addresses that a container finds for a name."""
    text = store("exec", who, "busybox", "nslookup", name, "127.0.0.11").stdout
    return re.findall(r"^Address: (\S+)$", text, re.MULTILINE)


def reaches(store: Store, who: str, address: str) -> bool:
    words = ("exec", who, "busybox", "ping", "-c1", "-W1", address)
    return store(*words).returncode == 0


def test_names_and_aliases_are_found_on_a_network_of_one_s_own(shop: Store) -> None:
    shop.says("network", "create", "--subnet", "10.9.0.0/24", "shop")
    for name, ip in (("web", "10.9.0.7"), ("db", "10.9.0.8")):
        flags = ("--network", "shop", "--ip", ip, "--network-alias", "all")
        flags = (*flags, "--dns", OUTSIDE)  # nobody listens there, and says so
        shop.says("run", "-d", "--name", name, *flags, *SLEEP)
    assert lookup(shop, "web", "db") == ["10.9.0.8"]
    assert lookup(shop, "web", "DB.shop") == ["10.9.0.8"]
    assert sorted(lookup(shop, "web", "all")) == ["10.9.0.7", "10.9.0.8"]
    id = shop.says("inspect", "-f", "{{.Id}}", "db")[:12]
    assert lookup(shop, "web", id) == ["10.9.0.8"]
    text = shop.says("exec", "web", "busybox", "nslookup", "10.9.0.8", "127.0.0.11")
    assert "name = db.shop" in text
    assert shop.says("exec", "web", "busybox", "ping", "-c1", "-w3", "db")
    shop.says("rm", "-f", "db")
    assert lookup(shop, "web", "db") == []


def test_a_container_is_made_on_several_networks(shop: Store) -> None:
    for name, subnet in (("front", "10.9.0.0/24"), ("back", "10.9.1.0/24")):
        shop.says("network", "create", "--subnet", subnet, name)
    flags = ("--network", "name=front,alias=web,alias=www,ip=10.9.0.9")
    flags += ("--network", "name=back,alias=db")
    shop.says("run", "-d", "--name", "one", *flags, *SLEEP)
    shop.says("run", "-d", "--name", "two", "--network", "back", *SLEEP)
    assert lookup(shop, "two", "db") == ["10.9.1.2"]
    assert lookup(shop, "one", "www") == ["10.9.0.9"]
    shop.says("restart", "-t", "0", "one")
    text = shop.says("exec", "one", "busybox", "ip", "-4", "-o", "addr")
    assert re.findall(r"eth\d +inet (\S+)", text) == ["10.9.0.9/24", "10.9.1.2/24"]
    for words, said in (
        (("front", "none"), "both user-defined and non-user-defined"),
        (("front", "bridge"), "both user-defined and non-user-defined"),
        (("front", "front"), '"front" is specified multiple times'),
        (("front", "nosuch"), "network nosuch not found"),
        (("name=front,ip=10.9.1.7",), "does not belong to any of"),
        (("name=front,ip=10.9.0.7,ip6=1",), "invalid IPv6 address: 1"),
        (("name=front,alias",), "invalid field alias"),
    ):
        networks = [word for name in words for word in ("--network", name)]
        done = shop("run", "--name", "never", *networks, *SLEEP)
        assert (done.returncode, said in done.stderr) == (125, True), done.stderr
    assert shop("inspect", "never").returncode == 1


NAMESERVER = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", 53)); print("ready", flush=True)
while True:
    q, peer = s.recvfrom(512)
    a = q[:2] + b"\\x81\\x80\\0\\1\\0\\1\\0\\0\\0\\0" + q[12:] + b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x09\\0\\4\\x01\\2\\3\\4"
    s.sendto(a, peer)
"""


def test_other_names_are_asked_of_the_host_s_servers(shop: Store, host: Stage) -> None:
    shop.says("network", "create", "shop")
    flags = ("--network", "shop", "--dns", OUTSIDE)
    shop.says("run", "-d", "--name", "web", *flags, *SLEEP)
    with host.serving(NAMESERVER):  # it says 1.2.3.4 to every question
        words = (
            "exec",
            "web",
            "busybox",
            "nslookup",
            "-type=a",
            "example.org",
            "127.0.0.11",
        )
        assert "Address: 1.2.3.4" in shop.says(*words)


def test_networks_do_not_reach_each_other(shop: Store, host: Stage) -> None:
    for name, subnet in (("one", "10.9.1.0/24"), ("two", "10.9.2.0/24")):
        shop.says("network", "create", "--subnet", subnet, name)
    shop.says("run", "-d", "--name", "aa", "--network", "one", *SLEEP)
    shop.says("run", "-d", "--name", "bb", "--network", "two", *SLEEP)
    shop.says("run", "-d", "--name", "cc", "--network", "one", *SLEEP)
    assert reaches(shop, "aa", "10.9.1.3")
    assert reaches(shop, "aa", OUTSIDE)
    assert not reaches(shop, "aa", "10.9.2.2")
    assert (
        host.outside("ip", "route", "add", "10.9.0.0/16", "via", HOST).returncode == 0
    )
    assert host.outside("busybox", "ping", "-c1", "-W1", "10.9.1.2").returncode != 0


def test_an_internal_network_has_no_way_out(shop: Store) -> None:
    shop.says("network", "create", "--internal", "--subnet", "10.9.3.0/24", "inner")
    for name in ("aa", "bb"):
        shop.says("run", "-d", "--name", name, "--network", "inner", *SLEEP)
    assert reaches(shop, "aa", "10.9.3.3")
    assert not reaches(shop, "aa", OUTSIDE)
    assert "default" not in shop.says("exec", "aa", "busybox", "ip", "route")


def test_ipv6_is_there_where_it_was_asked_for(shop: Store) -> None:
    flags = ("--ipv6", "--subnet", "fd00:9::/64", "--subnet", "10.9.4.0/24")
    shop.says("network", "create", *flags, "six")
    shop.says("run", "-d", "--name", "aa", "--network", "six", *SLEEP)
    words = ("run", "-d", "--name", "bb", "--network", "six", "--ip6", "fd00:9::77")
    shop.says(*words, *SLEEP)
    text = shop.says("exec", "bb", "busybox", "ip", "addr", "show", "eth0")
    assert "inet6 fd00:9::77/64" in text
    assert "default via fd00:9::1" in shop.says(
        "exec", "bb", "busybox", "ip", "-6", "route"
    )
    words = ("exec", "aa", "busybox", "ping", "-6", "-c1", "-w3", "fd00:9::77")
    assert "1 packets received" in shop.says(*words)


def test_a_running_container_joins_and_leaves(shop: Store) -> None:
    shop.says("network", "create", "--subnet", "10.9.5.0/24", "shop")
    shop.says("run", "-d", "--name", "web", "--dns", OUTSIDE, *SLEEP)
    flags = ("--network", "shop", "--dns", OUTSIDE)
    shop.says("run", "-d", "--name", "db", *flags, *SLEEP)
    shop.says(
        "network", "connect", "--alias", "www", "--ip", "10.9.5.50", "shop", "web"
    )
    assert reaches(shop, "web", "10.9.5.2")
    assert lookup(shop, "db", "www") == ["10.9.5.50"]
    assert lookup(shop, "web", "db") == ["10.9.5.2"]
    assert "10.9.5.50\t" in shop.says("exec", "web", "cat", "/etc/hosts")
    shown = shop.says("ps", "--format", "{{.Names}} {{.Networks}}")
    assert "web bridge,shop" in shown
    shop.says("network", "disconnect", "bridge", "web")
    text = shop.says("exec", "web", "busybox", "ip", "route")
    assert "default via 10.9.5.1" in text
    assert "172.17" not in text
    shop.says("network", "disconnect", "shop", "web")
    assert lookup(shop, "db", "www") == []
    assert shop("network", "disconnect", "shop", "web").returncode == 1
    shop.says("rm", "-f", "web", "db")
    wait_until(lambda: left() == ([], []))


def test_what_a_stopped_container_joined_it_has_at_its_next_start(shop: Store) -> None:
    shop.says("network", "create", "--subnet", "10.9.6.0/24", "shop")
    shop.says("run", "--name", "web", "small:v1", "true")
    shop.says("network", "connect", "shop", "web")
    found = json.loads(shop.says("inspect", "web"))[0]["NetworkSettings"]["Networks"]
    assert {name: one["IPAddress"] for name, one in found.items()} == {
        "bridge": "", "shop": "",
    }  # fmt: skip
    assert shop("network", "connect", "nowhere", "web").returncode == 1


REFUSED = [
    ("--subnet x nn", "Invalid subnet x"), ("bridge", "predefined bridge network"),
    ("--subnet 10.1.0.0/16 --gateway 10.2.0.1 nn", "no matching subnet for gateway 10.2.0.1"),
    ("--subnet 10.1.0.0/16 --subnet 10.2.0.0/16 nn", "doesn't support multiple subnets"),
    ("--gateway 10.1.0.1 nn", "every ip-range or gateway must have a corresponding subnet"),
    ("--subnet 10.9.9.0/25 nn", "Pool overlaps"), ("there", "network with name there already exists"),
    ("--driver foo nn", "foo"), ("-d host nn", 'only one instance of "host"'),
    ("--ipv6 nn", "IPv6 address pool"), ("..", "invalid network name"), ("a/b", "invalid network name"),
    ("-o com.docker.network.bridge.name=abcdefghijklmnop nn", "invalid bridge name"),
    ("-o com.docker.network.driver.mtu=x nn", "invalid MTU"),
    ("--subnet 10.1.0.0/33 nn", "invalid CIDR"),
]  # fmt: skip


def test_a_network_that_cannot_be_is_refused(shop: Store) -> None:
    shop.says("network", "create", "--subnet", "10.9.9.0/24", "there")
    for words, said in REFUSED:
        done = shop("network", "create", *words.split())
        assert done.returncode == 1, words
        assert said in done.stderr.splitlines()[0], words
        assert done.stdout == ""
    listed = shop.says("network", "ls", "-q", "-f", "type=custom").split()
    assert len(listed) == 1


def test_a_network_in_use_is_not_removed(shop: Store) -> None:
    shop.says("network", "create", "shop")
    shop.says("run", "-d", "--name", "web", "--network", "shop", *SLEEP)
    done = shop("network", "rm", "shop", "bridge", "nowhere")
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "hint" not in line]
    assert "has active endpoints" in lines[0]
    assert "pre-defined network and cannot be removed" in lines[1]
    assert "network nowhere not found" in lines[2]
    assert shop.says("network", "prune", "-f") == ""
    shop.says("rm", "-f", "web")
    assert shop.says("network", "prune", "-f") == "Deleted Networks:\nshop\n\n"


# The same words to Docker, whose daemon has a bridge of its own on the same host.
DIALOGUE = [
    "network create --subnet 10.9.0.0/24 --label a=b -o x=y nn", "network create oo",
    "network ls --format {{.Name}}|{{.Driver}}|{{.Scope}}|{{.IPv6}}|{{.Internal}}|{{.Labels}}",
    "network ls -f type=custom --format {{.Name}}", "network ls -f driver=null --format {{.Name}}",
    "run -d --name uu --network nn --ip 10.9.0.9 --network-alias al --add-host x:1.1.1.1 IMAGE sleep 600",
    "run -d --name bb --expose 80 --expose 90/udp -p 5000-5001:5000-5001 -p 7000:70 -p 127.0.0.1:9:9/udp IMAGE sleep 600",
    "run -d --name zz --network none --expose 80 IMAGE sleep 600",
    "ps --format {{.Names}}|{{.Networks}}|{{.Ports}}", "port bb", "port bb 70", "port bb 9/udp",
    "port zz", "exec uu cat /etc/resolv.conf", "exec bb busybox ip route",
    "exec uu sh -c cat</etc/hosts|busybox&tail&-n&2|busybox&cut&-f1",
    "network inspect nn", "network inspect oo",
    "inspect -f {{json&.NetworkSettings}} uu", "inspect -f {{json&.NetworkSettings}} bb",
    "inspect -f {{json&.NetworkSettings}} zz", "inspect -f {{json&.HostConfig.PortBindings}} bb",
    "inspect -f {{json&.Config.ExposedPorts}} bb", "inspect -f {{.HostConfig.NetworkMode}} uu bb zz",
    "network connect --alias kk oo uu", "exec uu busybox ip route",
    "inspect -f {{json&.NetworkSettings.Networks}} uu",
    "network disconnect nn uu", "exec uu busybox ip route", "network disconnect nn uu",
    "network connect host uu", "network connect none uu", "network connect oo zz", "network rm oo",
    "run --rm --network moon IMAGE true", "run --rm -p 7000:70 IMAGE true",
    "stop -t 0 bb", "inspect -f {{json&.NetworkSettings}} bb", "port bb",
    "rm -f uu bb zz", "network prune -f",
]  # fmt: skip
VARIES = re.compile(
    r'"(SandboxID|SandboxKey|EndpointID|Created|com.docker.network.bridge.name)": ?"[^"]*",?|'
    r'"DriverOpts": ?(null|{}),?|"IPAMConfig": ?(null|{}),?'
)


def settled(text: str) -> str:
    """A text without ids, times, and the order of what is in an object."""
    text = VARIES.sub("", re.sub(r"\b[0-9a-f]{64}\b|\b[0-9a-f]{12}\b", "ID", text))
    text = text.replace("172.18.", "172.NN.").replace("172.19.", "172.NN.")
    text = text.replace("ac:12:", "ac:NN:").replace("ac:13:", "ac:NN:")
    text = text.replace("172.17.", "172.DD.").replace("172.20.", "172.DD.")
    text = text.replace("ac:11:", "ac:DD:").replace("ac:14:", "ac:DD:")
    lines = text.splitlines()
    return "\n".join(sorted("".join(sorted(re.split(r"([,{} ])", x))) for x in lines))


def test_docker_says_the_same(
    host: Stage,
    small_tree: Path,
    imported: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    words = [[w.replace("&", " ") for w in line.split()] for line in DIALOGUE]
    short = tmp_path_factory.mktemp("d")  # it becomes part of a socket's name
    with docker_daemon(short, bridge="here") as client:
        client("import", "-", "small:v1", stdin=small_tree.read_bytes())
        theirs = [
            client(*("small:v1" if w == "IMAGE" else w for w in line)) for line in words
        ]
        client("network", "prune", "-f")
    subprocess.run(["ip", "link", "delete", "docker0"], check=True)
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    store = Store(imported("overlay2"))
    ours = [store(*("small:v1" if w == "IMAGE" else w for w in line)) for line in words]
    clean(store)
    for line, one, two in zip(DIALOGUE, theirs, ours, strict=True):
        shown = f"{line}\n{one.stdout}{one.stderr}---\n{two.stdout}{two.stderr}"
        assert one.returncode == two.returncode, shown
        assert settled(one.stdout) == settled(two.stdout), shown


def test_a_new_name_is_found_at_once(shop: Store) -> None:
    shop.says("network", "create", "shop")
    flags = ("--network", "shop", "--dns", OUTSIDE)
    for name in ("web", "db"):
        shop.says("run", "-d", "--name", name, *flags, *SLEEP)
    (before,) = lookup(shop, "web", "db")
    shop.says("rename", "db", "base")
    assert lookup(shop, "web", "base") == [before]
    assert lookup(shop, "web", "db") == []
    assert "base" in shop.says("network", "inspect", "shop")


def test_who_shares_a_network_shares_its_names(shop: Store) -> None:
    shop.says("run", "-d", "--name", "web", "--add-host", "db:10.0.0.5", *SLEEP)
    words = ("run", "--rm", "--network", "container:web", "small:v1", "cat")
    theirs = shop.says("exec", "web", "cat", "/etc/hosts", "/etc/resolv.conf")
    assert shop.says(*words, "/etc/hosts", "/etc/resolv.conf") == theirs
    assert "10.0.0.5\tdb" in theirs


def test_system_prune_removes_networks_too(shop: Store) -> None:
    shop.says("network", "create", "shop")
    said = shop.says("system", "prune", stdin=b"y\n")
    assert "  - all networks not used by at least one container\n" in said
    assert "Deleted Networks:\nshop\n\n" in said


def test_prune_passes_over_what_another_prune_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between the list and the removal the network may go."""
    gone = BridgeNetwork("1" * 64, "gone", "2026-01-01T00:00:00Z", ())
    monkeypatch.setattr(
        network_verbs, "every_network", lambda store: [(gone, "bridge")]
    )
    network_verbs.prune_networks(Engine(str(tmp_path), "vfs"), {})
    assert capsys.readouterr().out == ""


def test_a_sweep_passes_over_a_mark_that_another_took(tmp_path: Path) -> None:
    engine = Engine(str(tmp_path), "vfs")
    sweep_network(network_store(engine.containers), "gone")
    assert not os.path.exists(tmp_path / "networks/up")
