"""train.json and validation.json of find_new: the ids of the documents that an earlier run did not have."""

NEW = "{side}.json"
