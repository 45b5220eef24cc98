"""`python3 -m shipping DIR`: write below DIR what a package has below /usr, of the xengrant that Python imports."""

import sys
from pathlib import Path

from shipping import completions, manual
from xengrant import __version__
from xengrant.cli.commands import whole_parser

for name, text in {**manual.pages(whole_parser(), __version__), **completions.scripts(whole_parser())}.items():
    file = Path(sys.argv[1], name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
