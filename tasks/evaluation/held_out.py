"""held_out.parquet: what a model makes of each held-out document, a row for each window of it."""

from tasks.tables import Schema

HELD_OUT = "held_out.parquet"
HELD_OUT_SCHEMA: Schema = {
    "id": "string",
    "window": "uint32",
    "nats": "double",
    "tokens": "uint64",
    "bytes": "uint64",
}
