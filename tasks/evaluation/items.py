"""items.parquet: what a model makes of each benchmark item."""

from tasks.tables import Schema

ITEMS = "items.parquet"
ITEMS_SCHEMA: Schema = {
    "task": "string",
    "item": "uint32",
    "correct": "double",
    "gold_nats": "double",
    "gold_bytes": "uint32",
    "chance": "double",
    "tied": "bool",
}
