"""`fedkron keys`: keys and certificates of a federation on several machines."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedkron.deploy.keys import Issued


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "keys",
        help="make the keys and certificates of a federation",
        description="Make the keys and certificates with which the machines of a federation know each other. "
        "docs/deploy.md says what goes on which machine.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    new = actions.add_parser("new", help="everything for a new federation, in a new folder")
    _add_server_options(new)
    new.add_argument("--nodes", type=int, default=2, help="key pairs for SuperNodes (default: 2)")
    new.set_defaults(command=_new)

    node = actions.add_parser("node", help="the key pair of one more SuperNode, in a new folder")
    _add_common_options(node)
    node.set_defaults(command=_node)

    renewed = actions.add_parser(
        "renew", help="a new server certificate of the same authority, in place of the old one"
    )
    _add_server_options(renewed)
    renewed.set_defaults(command=_renew)


def _add_common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="where the keys lie")
    parser.add_argument("--json", action="store_true", help="print what was made as JSON")


def _add_server_options(parser: argparse.ArgumentParser) -> None:
    _add_common_options(parser)
    parser.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME",
        help="DNS name or IP address under which nodes reach the SuperLink; may be given several times "
        "(default: localhost and 127.0.0.1; with renew: those of the old certificate)",
    )
    parser.add_argument(
        "--days", type=int, default=365, help="how long the server's certificate is valid (default: 365)"
    )


def _new(options: argparse.Namespace) -> int:
    from fedkron.deploy.keys import LOCAL_HOSTS, issue

    issued = issue(options.folder, hosts=options.host or LOCAL_HOSTS, nodes=options.nodes, days=options.days)
    _print(issued, options)
    return 0


def _node(options: argparse.Namespace) -> int:
    from fedkron.deploy.keys import issue_node

    public = issue_node(options.folder)
    if options.json:
        print(json.dumps({"public_key": str(public)}, indent=1))
    else:
        print(f"Public key: {public}\nRegister it: flwr supernode register {public} SUPERLINK")
    return 0


def _renew(options: argparse.Namespace) -> int:
    from fedkron.deploy.keys import renew

    _print(renew(options.folder, hosts=options.host, days=options.days), options)
    return 0


def _print(issued: Issued, options: argparse.Namespace) -> None:
    figures = {
        "folder": str(issued.folder),
        "hosts": list(issued.hosts),
        "nodes": list(issued.nodes),
        "server_expires": issued.server_expires.isoformat(),
        "authority_expires": issued.authority_expires.isoformat(),
    }
    if options.json:
        print(json.dumps(figures, indent=1))
        return
    print(f"Keys in {issued.folder}, for {', '.join(issued.hosts)}")
    print(f"The server's certificate is valid until {issued.server_expires:%Y-%m-%d}.")
    print(f"The authority's certificate is valid until {issued.authority_expires:%Y-%m-%d}.")
    if issued.nodes:
        print(f"Key pairs: {', '.join(issued.nodes)}")
