"""`make bench`: prints what the framework costs, as figures of one interleaved run."""

from __future__ import annotations

from tests.bench import loader, overhead

if __name__ == "__main__":
    overhead.main()
    loader.main()
