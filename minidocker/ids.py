# From book/280-ids.md. Edit there and tangle, or here and tangle --back.

# %% Ids: which bytes hash to what
"""List the digests of an image: of which bytes each is, and how to check it by hand."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import suppress

from minidocker.archive import Put, Tally
from minidocker.compression import compress_layer
from minidocker.errors import IntegrityError, MinidockerError, NotFoundError
from minidocker.images import ImageStore
from minidocker.layers import LayerStore
from minidocker.oci import chain_ids, hex_of, sha256_text
from minidocker.records import Enum, Record


# %% The nouns
class Kind(Enum):
    """What a digest is the name of."""

    IMAGE = "image id"
    DIFF = "diff id"
    CHAIN = "chain id"
    BLOB = "blob digest"
    MANIFEST = "manifest digest"


class Claim(Record):
    """A digest, and of which bytes it claims to be.

    ``layer`` counts from 1 at the bottom, 0 for what is no layer's. ``check`` is a
    shell command that prints the digits again; empty where the bytes are not here.
    """

    kind: Kind
    digest: str
    layer: int
    bytes_of: str
    check: str


class Verdict(Record):
    """What became of a claim: ``found`` is the digest of the bytes, None without them.

    ``why`` says what is wrong with the bytes.
    """

    claim: Claim
    found: str | None
    why: str = ""

    @property
    def right(self) -> bool | None:
        """Whether the digest is that of its bytes; None where it cannot be known."""
        if self.why:
            return False
        return None if self.found is None else self.found == self.claim.digest


# %% The claims
def claims_of(
    images: ImageStore,
    id: str,
    name: str,
    program: str = "minidocker",
    blobs: LayerStore | None = None,
) -> Iterator[Claim]:
    """Yield the digests of an image: its own, those of its layers from the bottom.

    ``name`` and ``program`` are how the commands name the image and us. With the layers
    as ``blobs``, each is compressed for the digest that a registry would have.
    """
    path = shlex.quote(f"{images.content}/{hex_of(id)}")
    yield Claim(Kind.IMAGE, id, 0, "the image JSON", f"sha256sum {path}")
    diff_ids = images.get(id).diff_ids
    chains = chain_ids(diff_ids)
    for number, (diff_id, chain) in enumerate(zip(diff_ids, chains, strict=True), 1):
        words = f"{program} ids --bytes {diff_id} {shlex.quote(name)}"
        what = "the layer's tar, uncompressed"
        yield Claim(Kind.DIFF, diff_id, number, what, f"{words} | sha256sum")
        if number == 1:
            what = "the same bytes, for nothing is below"
            text = f"{words} | sha256sum"
        else:
            below = chains[number - 2]
            what = "the chain id below, a space, the diff id"
            text = f"printf %s '{below} {diff_id}' | sha256sum"
        yield Claim(Kind.CHAIN, chain, number, what, text)
        if blobs:
            yield blob_claim(blobs, chain, number, name, program)
    for known in images.digests_of(id):
        what = f"the manifest that a registry has of {known.partition('@')[0]}"
        yield Claim(Kind.MANIFEST, known.partition("@")[2], 0, what, "")


# %% The claims
def blob_claim(
    layers: LayerStore, chain: str, number: int, name: str, program: str
) -> Claim:
    """Return the digest of a layer as we push it; reads and compresses the layer."""
    digest = compress_layer(layers, chain, lambda data: None).digest
    words = f"{program} ids --bytes {digest} {shlex.quote(name)}"
    what = "the layer's tar, compressed as push sends it (gunzip gives the tar)"
    return Claim(Kind.BLOB, digest, number, what, f"{words} | sha256sum")


def write_bytes(
    images: ImageStore, layers: LayerStore, id: str, digest: str, put: Put
) -> None:
    """Write the bytes of which a digest of an image is.

    Raises NotFoundError for one that is not the image's, and IntegrityError, after the
    last byte, where they are not those.
    """
    if digest == id:
        put(images.raw(id))
        return
    diff_ids = images.get(id).diff_ids
    chains = chain_ids(diff_ids)
    if digest in diff_ids:
        layers.tar_of(chains[diff_ids.index(digest)], put)
    elif digest in chains:
        at = chains.index(digest)
        put(f"{chains[at - 1]} {diff_ids[at]}".encode())
    else:
        write_blob(layers, chains, digest, put)


def write_blob(layers: LayerStore, chains: list[str], digest: str, put: Put) -> None:
    """Write the layer whose blob has a digest. Raises NotFoundError."""
    for chain in chains:
        with suppress(IntegrityError):  # a damaged layer has no blob to be found
            if compress_layer(layers, chain, lambda data: None).digest == digest:
                compress_layer(layers, chain, put)
                return
    hint = "`minidocker ids IMAGE` lists those that it has"
    raise NotFoundError(f'the image has no bytes of "{digest}"', hint=hint)


# %% The claims
def verdict_on(
    images: ImageStore, layers: LayerStore, id: str, claim: Claim
) -> Verdict:
    """Hash the bytes of a claim anew."""
    if not claim.check:
        return Verdict(claim, None)
    if claim.kind is Kind.IMAGE:
        with open(f"{images.content}/{hex_of(id)}", "rb") as file:
            return Verdict(claim, sha256_text(file.read()))
    tally = Tally()
    try:
        write_bytes(images, layers, id, claim.digest, tally)
    except IntegrityError as why:
        return Verdict(claim, tally.digest, why.what)
    except (NotFoundError, OSError) as why:
        what = why.what if isinstance(why, MinidockerError) else str(why)
        return Verdict(claim, None, what)
    return Verdict(claim, tally.digest)


# %% To be read
def claim_lines(claims: list[Claim], verdicts: list[Verdict]) -> Iterator[str]:
    """Yield the lines of a list of digests; ``verdicts`` are those of all, or empty."""
    layer = 0
    for number, claim in enumerate(claims):
        if claim.layer not in (0, layer):
            yield f"layer {claim.layer}"
        layer = claim.layer
        inset = "  " if layer else ""
        yield f"{inset}{claim.kind.value.ljust(17 - len(inset))}{claim.digest}"
        yield f"{inset}  of {claim.bytes_of}"
        if claim.check:
            yield f"{inset}  $ {claim.check}"
        if verdicts:
            yield f"{inset}  {verdict_words(verdicts[number])}"


def verdict_words(verdict: Verdict) -> str:
    """Return a verdict in words."""
    if verdict.right is None:
        return "not checked: its bytes are not on this machine"
    if verdict.right:
        return "verified"
    found = f": {verdict.found}" if verdict.found else ""
    return f"WRONG{found}{f' ({verdict.why})' if verdict.why else ''}"


def claim_document(claim: Claim, verdict: Verdict | None) -> dict[str, object]:
    """Return a claim as a JSON object."""
    found: dict[str, object] = {
        "Kind": claim.kind.value,
        "Digest": claim.digest,
        "Layer": claim.layer,
        "BytesOf": claim.bytes_of,
        "Check": claim.check,
    }
    if verdict:
        found |= {"Verified": verdict.right, "Found": verdict.found}
    return found
