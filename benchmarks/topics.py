"""Create the topics of a benchmark: ``python -m benchmarks.topics BOOTSTRAP PREFIX APP_ID PARTITIONS``."""

from __future__ import annotations

import sys

from streams.admin import create_topics
from streams.settings import load


def main() -> None:
    """Create what is missing."""
    bootstrap, prefix, app_id, partitions = sys.argv[1:5]
    create_topics(load({"bootstrap": bootstrap, "topic_prefix": prefix, "app_id": app_id, "partitions": partitions, "replication": 1}, {}, None))


if __name__ == "__main__":
    main()
