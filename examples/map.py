"""Find the page that share.py shares, map it, and answer in place: the mapping half."""

import sys

import xengrant

TEXT = slice(0, 64)
PORT = slice(64, 68)
ANSWER = slice(128, 192)


def main() -> None:
    granter = int(sys.argv[1])
    with xengrant.connect() as domain, domain.gnttab() as gnttab, domain.evtchn() as evtchn:
        grants = domain.find(granter, "data/hello", timeout=60)
        with gnttab.map(grants, writable=True) as mapped:
            page = mapped.mapping
            text = page[TEXT].rstrip(b"\0")
            print(f"domain {granter} says {text!r}")
            page[ANSWER] = f"thanks, domain {domain.domid}".encode().ljust(64, b"\0")
            with evtchn.bind_interdomain(granter, int.from_bytes(page[PORT], "little")) as port:
                port.notify()


if __name__ == "__main__":
    main()
