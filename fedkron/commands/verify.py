"""`fedkron verify`: check a published adapter, all of it, and keep nothing."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `cryptography` is part of an extra
    from fedkron.registry.store import Found
    from fedkron.registry.trust import Trusted


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "verify",
        help="check a published adapter: signature, key, every file",
        description="Fetch all of a published adapter and check it: its manifest's signature, the key, sizes "
        "and hashes, and that the files are what the manifest says. Exit code 0 only if nothing is wrong.",
    )
    add_publication_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=verify)


def add_publication_arguments(parser: argparse.ArgumentParser) -> None:
    """Which publication is meant, and whose are believed: for `verify` and `pull`."""
    parser.add_argument(
        "store", help="a store, or a single publication (a folder that was pulled, or pushed)"
    )
    parser.add_argument(
        "adapter",
        nargs="?",
        metavar="NAME[@RELEASE]",
        help="NAME (its latest release), NAME@RELEASE or NAME@RELEASE-DIGEST; not for a single publication",
    )
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="KEY",
        help="believe this publisher: a public key in hex, or in PEM, or a file of known publishers; may be "
        "repeated (default: $FEDKRON_KNOWN_PUBLISHERS, or ~/.config/fedkron/known-publishers)",
    )


def verify(options: argparse.Namespace) -> int:
    """Check, and print what was found."""
    from fedkron.registry.fetch import fetch
    from fedkron.registry.trust import check_trusted, is_trusted

    found = find_publication(options.store, options.adapter)
    signed, trusted = found.signed, read_trusted(options)
    publication = signed.publication
    if options.trust:
        check_trusted(publication, trusted)
    is_known = is_trusted(publication, trusted)
    with tempfile.TemporaryDirectory() as folder:
        fetch(found, publication.files, Path(folder))
    if options.json:
        facts = {**json.loads(signed.content), "sha256": signed.digest, "trusted": is_known}
        print(json.dumps(facts, indent=1))
        return 0
    hint = "" if is_known else "  (the manifest says so, nobody else: compare it, or give --trust)"
    print(f"{publication.name}@{publication.release}: nothing is wrong with {len(publication.files)} files")
    print(f"manifest    {signed.digest}")
    print(f"public key  {publication.public_key}{hint}")
    return 0


def find_publication(store: str, name: str | None) -> Found:
    """The publication that is meant; its signature is right, its key may be anybody's."""
    from fedkron.registry.storage import open_storage
    from fedkron.registry.store import find, find_single, reference

    storage = open_storage(store)
    if name is None:
        return find_single(storage)
    return find(storage, reference(name))


def read_trusted(options: argparse.Namespace) -> list[Trusted]:
    """Who is believed: those given, otherwise those known."""
    from fedkron.registry.trust import known_publishers, read_known, read_trust

    if not options.trust:
        return read_known(known_publishers())
    return [key for source in options.trust for key in read_trust(source)]
