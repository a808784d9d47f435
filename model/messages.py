"""Messages of a conversation: who speaks, and what is said."""

ROLES = ("system", "user", "assistant")

Message = dict[str, str]
"""Who speaks, `role`, and what is said, `content`."""
