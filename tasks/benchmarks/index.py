"""index.parquet: the n-grams of benchmark items, one row for each n-gram of each item."""

from tasks.tables import Schema

INDEX = "index.parquet"
INDEX_SCHEMA: Schema = {"n": "uint8", "hash": "uint64", "task": "string", "item": "uint32"}
