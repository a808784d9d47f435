"""answers.parquet: what a model answers to each held-out conversation."""

from tasks.tables import Schema

ANSWERS = "answers.parquet"
ANSWERS_SCHEMA: Schema = {
    "id": "string",
    "group": "string",
    "question": "string",
    "expected": "string",
    "answered": "string",
    "correct": "double",
    "formed": "double",
    "nats": "double",
    "bytes": "double",
}
